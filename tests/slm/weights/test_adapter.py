"""Adapters: merged exactly as peft would, or refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from slm.engine.model import LoadError, load

NAME = "model.layers.1.self_attn.q_proj"


def adapter(folder: Path, weights: dict[str, torch.Tensor] | None = None, **config: Any) -> Path:
    """A LoRA adapter of rank 2 on one module, written as peft writes it."""
    folder.mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(3)
    plain = {
        f"base_model.model.{NAME}.lora_A.weight": torch.randn(2, 48, generator=generator),
        f"base_model.model.{NAME}.lora_B.weight": torch.randn(48, 2, generator=generator),
    }
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "bias": "none", "target_modules": ["q_proj"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file(plain if weights is None else weights, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize(("rslora", "scale"), [(False, 3.0), (True, 6 / 2**0.5)])
def test_an_adapter_is_added_by_its_formula(llama_folder: Path, tmp_path: Path, rslora: bool, scale: float) -> None:
    """W + scale · B · A on the named module, with either scaling, and nothing else changed."""
    made = adapter(tmp_path / "a", use_rslora=rslora)
    base, merged = load(llama_folder), load(llama_folder, made)
    generator = torch.Generator().manual_seed(3)
    down, up = torch.randn(2, 48, generator=generator), torch.randn(48, 2, generator=generator)
    before, after = dict(base.model.named_parameters()), dict(merged.model.named_parameters())
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == [f"{NAME}.weight"]
    torch.testing.assert_close(after[changed[0]], before[changed[0]] + scale * up @ down)
    assert base.info.adapter_sha256 is None
    assert merged.info.adapter_sha256 is not None
    assert merged.info.weights_sha256 == base.info.weights_sha256


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft still uses a name that transformers is giving up
def test_merging_equals_peft(llama_folder: Path, tmp_path: Path) -> None:
    """An adapter that peft itself wrote gives the logits that peft itself gives."""
    peft = pytest.importorskip("peft")
    wrapped = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(llama_folder),
        peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False),
    )
    wrapped.save_pretrained(tmp_path)
    ids = torch.arange(20).unsqueeze(0)
    with torch.inference_mode():
        expected = wrapped.eval()(ids).logits
        got = load(llama_folder, tmp_path).model(ids).logits
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"peft_type": "IA3"}, "peft_type"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"of_tomorrow": 1}, "of_tomorrow"),
        ({"r": 0}, "r must be"),
    ],
)
def test_what_cannot_be_added_exactly_is_refused(
    llama_folder: Path, tmp_path: Path, config: dict[str, Any], reason: str
) -> None:
    """A setting beyond plain LoRA, known or unknown, is an error that names it."""
    with pytest.raises(LoadError, match=reason):
        load(llama_folder, adapter(tmp_path / "a", **config))


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ({}, "no weights"),
        ({"base_model.model.lm_head.weight": torch.zeros(2, 2)}, "lm_head.weight is not supported"),
        ({f"{NAME}.lora_A.weight": torch.zeros(2, 48)}, "lacks a matching half"),
        ({f"{NAME}.lora_A.weight": torch.zeros(2, 9), f"{NAME}.lora_B.weight": torch.zeros(48, 2)}, "another shape"),
        ({"no.lora_A.weight": torch.zeros(2, 48), "no.lora_B.weight": torch.zeros(48, 2)}, "has no no"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    llama_folder: Path, tmp_path: Path, weights: dict[str, torch.Tensor], reason: str
) -> None:
    """Empty, whole, halved, misshapen and misplaced weights are told apart."""
    with pytest.raises(LoadError, match=reason):
        load(llama_folder, adapter(tmp_path / "a", weights))


def test_a_folder_without_an_adapter_is_refused(llama_folder: Path, tmp_path: Path) -> None:
    """A missing file is an error that names it."""
    with pytest.raises(LoadError, match="adapter_config"):
        load(llama_folder, tmp_path)
    adapter(tmp_path / "a")
    (tmp_path / "a" / "adapter_model.safetensors").write_bytes(b"pickle")
    with pytest.raises(LoadError, match="adapter_model"):
        load(llama_folder, tmp_path / "a")
