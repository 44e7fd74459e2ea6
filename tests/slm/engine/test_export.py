"""Exports: what other engines read is the merged model."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from slm.engine.export import FACTS, ExportError, Format, export
from slm.engine.model import load
from slm.weights.convert import convert
from tests.slm.weights.test_convert import INNER, SHA256, WIDTH, write_gguf, write_qwen

IDS = torch.arange(3, 40).unsqueeze(0)
MODULE = "model.layers.0.mlp.down_proj"


@pytest.fixture(scope="module", params=["llama", "qwen2", "qwen2 with an output of its own"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, `tiny`, and the file that it was made of, `tiny.gguf`."""
    home = tmp_path_factory.mktemp("base")
    if request.param == "llama":
        write_gguf(home / "tiny.gguf")
    else:
        write_qwen(home / "tiny.gguf", own_output=request.param != "qwen2")
    (home / "tiny").mkdir()
    convert(home / "tiny.gguf", home / "tiny", SHA256)
    return home


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that changes one matrix."""
    folder = tmp_path_factory.mktemp("adapter")
    generator = torch.Generator().manual_seed(9)
    weights = {
        f"base_model.model.{MODULE}.lora_A.weight": 0.3 * torch.randn(2, INNER, generator=generator),
        f"base_model.model.{MODULE}.lora_B.weight": 0.3 * torch.randn(WIDTH, 2, generator=generator),
    }
    save_file(weights, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["down_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def logits_of(model: torch.nn.Module) -> torch.Tensor:
    """Of a fixed text."""
    with torch.inference_mode():
        logits: torch.Tensor = model.eval()(IDS).logits[0]
    return logits


def moved(got: torch.Tensor, expected: torch.Tensor) -> float:
    """How far logits are from the expected ones, relative, by the norm."""
    return float((got - expected).norm() / expected.norm())


def unpacked(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a GGUF file as numbers."""
    return {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in GGUFReader(path).tensors}


def test_what_is_exported_is_the_merged_model(base: Path, adapter: Path, tmp_path: Path) -> None:
    """transformers loads the folder, and the float16 file by its own reader, to the logits of our merged model; the
    8-bit file holds the same tensors."""
    formats: list[Format] = ["safetensors", "f16", "q8_0"]
    target = tmp_path / "new" / "out"
    made = export(base / "tiny", adapter, target, formats, gguf=base / "tiny.gguf")
    assert made == [target, target / "tiny-f16.gguf", target / "tiny-q8_0.gguf"]
    merged = load(base / "tiny", adapter)
    expected = logits_of(merged.model)
    assert moved(logits_of(load(base / "tiny").model), expected) > 0.1
    folder = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    assert moved(logits_of(folder), expected) < 0.01
    plain = GgufConfig(dequantize=True)
    read = AutoModelForCausalLM.from_pretrained(
        target, gguf_file=made[1].name, dtype=torch.float32, quantization_config=plain
    )
    assert moved(logits_of(read), expected) < 0.002
    half, eight = (unpacked(path) for path in made[1:])
    assert half.keys() == eight.keys()
    assert max(np.linalg.norm(eight[name] - half[name]) / np.linalg.norm(half[name]) for name in half) < 0.01
    assert json.loads((target / FACTS).read_text(encoding="utf-8"))["adapter_sha256"] == merged.info.adapter_sha256
    assert [path.name for path in target.parent.iterdir()] == ["out"]


def test_an_exported_folder_is_a_model_of_ours_too(base: Path, adapter: Path, tmp_path: Path) -> None:
    """Its tokenizer is the base's, and our own loader accepts it."""
    export(base / "tiny", adapter, tmp_path / "out", ["safetensors"])
    text = "<|im_start|>e\u0301\n\n12"
    assert load(tmp_path / "out").tokens.encode(text) == load(base / "tiny").tokens.encode(text)
    ours, theirs = (
        AutoTokenizer.from_pretrained(folder).encode("a 12") for folder in (tmp_path / "out", base / "tiny")
    )
    assert ours == theirs


def test_a_gguf_file_keeps_the_base_s_tokenizer_and_settings(base: Path, tmp_path: Path) -> None:
    """Every field but the kind of the file is the base's; norms and biases are float32, and unchanged without an
    adapter."""
    (path,) = export(base / "tiny", None, tmp_path / "out", ["q8_0"], gguf=base / "tiny.gguf", name="other")
    assert path == tmp_path / "out" / "other-q8_0.gguf"
    before, after = GGUFReader(base / "tiny.gguf"), GGUFReader(path)
    own = {"general.file_type", "GGUF.tensor_count", "GGUF.kv_count"}
    assert {name: field.contents() for name, field in after.fields.items() if name not in own} == {
        name: field.contents() for name, field in before.fields.items() if name not in own
    }
    old, new = unpacked(base / "tiny.gguf"), unpacked(path)
    for name in new.keys() - {"token_embd.weight"}:  # a Qwen2's may be the output's other rounding
        if new[name].ndim == 1:
            np.testing.assert_allclose(new[name], old[name], rtol=2**-8)
        else:
            assert np.linalg.norm(new[name] - old[name]) < 0.02 * np.linalg.norm(old[name]), name


def test_what_cannot_be_exported_is_told_before_anything_is_written(llama_folder: Path, tmp_path: Path) -> None:
    """A folder in use, a model that came in no GGUF file, a file of another architecture, a damaged adapter."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(ExportError, match="is there already"):
        export(llama_folder, None, tmp_path / "full", ["safetensors"])
    with pytest.raises(ExportError, match="came in, and there is none"):
        export(llama_folder, None, tmp_path / "out", ["q8_0"])
    with pytest.raises(ExportError, match=r"none at .*gone\.gguf: remove"):
        export(llama_folder, None, tmp_path / "out", ["q8_0"], gguf=tmp_path / "gone.gguf")
    write_qwen(tmp_path / "qwen.gguf", own_output=False)
    with pytest.raises(ExportError, match="a llama is not written on a base file of architecture qwen2"):
        export(llama_folder, None, tmp_path / "out", ["f16"], gguf=tmp_path / "qwen.gguf")
    with pytest.raises(ExportError, match="is no folder"):
        export(llama_folder, tmp_path / "no adapter", tmp_path / "out", ["safetensors"])
    assert {path.name for path in tmp_path.iterdir()} == {"full", "qwen.gguf"}
