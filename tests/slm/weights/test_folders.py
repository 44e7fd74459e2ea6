"""Which folders are accepted as models and adapters."""

import json
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slm.weights.folders import FolderError, check_safetensors, folder_sha256, read_adapter, read_model, read_object

HEADER = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
TENSORS = struct.pack("<Q", len(HEADER)) + HEADER + bytes(4)


def model_folder(path: Path) -> Path:
    """The smallest folder that is accepted."""
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "llama"}')
    (path / "tokenizer.json").write_text("{}")
    (path / "model.safetensors").write_bytes(TENSORS)
    return path


def adapter_folder(path: Path) -> Path:
    """The smallest adapter that is accepted."""
    path.mkdir()
    (path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (path / "adapter_model.safetensors").write_bytes(TENSORS)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model folder called tiny."""
    return model_folder(tmp_path / "tiny")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An adapter folder."""
    return adapter_folder(tmp_path / "adapter")


def test_a_folder_is_named_and_hashed_by_what_it_holds(model: Path) -> None:
    """The hash changes with the weights and with the configuration, and not with other files."""
    before = read_model(model)
    (model / "README.md").write_text("new")
    assert before.name == "tiny"
    assert read_model(model).weights_sha256 == before.weights_sha256 == folder_sha256(model)
    (model / "config.json").write_text('{"model_type": "opt"}')
    other_config = read_model(model).weights_sha256
    (model / "model.safetensors").write_bytes(TENSORS[:-1] + b"x")
    assert len({before.weights_sha256, other_config, read_model(model).weights_sha256}) == 3


@pytest.mark.parametrize("pickle", ["pytorch_model.bin", "model.pt", "weights.pth", "model.ckpt", "model.pkl"])
def test_a_pickled_model_is_refused(model: Path, pickle: str) -> None:
    """The message names the file and the way out."""
    (model / "model.safetensors").rename(model / pickle)
    with pytest.raises(FolderError, match=rf"pickle \({pickle}\).*safetensors"):
        read_model(model)


def test_a_pickle_beside_safetensors_is_ignored(model: Path) -> None:
    """Hub repositories carry both; only safetensors are ever opened."""
    (model / "pytorch_model.bin").write_bytes(b"x")
    assert read_model(model).path == model


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("config.json", "config.json is missing"),
        ("tokenizer.json", "no tokenizer"),
        ("model.safetensors", "no weights"),
    ],
)
def test_what_is_missing_is_said(model: Path, missing: str, said: str) -> None:
    """Each missing part has its own message."""
    (model / missing).unlink()
    with pytest.raises(FolderError, match=said):
        read_model(model)


def test_vocabulary_and_merges_stand_in_for_a_tokenizer_file(model: Path) -> None:
    """Older byte-level models have no tokenizer.json; half of the pair is not enough."""
    (model / "tokenizer.json").rename(model / "vocab.json")
    with pytest.raises(FolderError, match="no tokenizer"):
        read_model(model)
    (model / "merges.txt").write_text("")
    assert read_model(model).path == model


def test_a_git_lfs_pointer_is_recognised(model: Path) -> None:
    """A clone without LFS is the commonest broken folder."""
    (model / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    with pytest.raises(FolderError, match="git lfs pull"):
        read_model(model)


def test_a_gguf_folder_points_to_pull(model: Path) -> None:
    """GGUF is converted for known models only."""
    (model / "model.safetensors").rename(model / "model.gguf")
    with pytest.raises(FolderError, match="smallcall models pull"):
        read_model(model)


def test_all_shards_must_be_there(model: Path) -> None:
    """An index with a missing shard is refused; a whole one is accepted."""
    (model / "model.safetensors").rename(model / "a.safetensors")
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FolderError, match=r"lacks 1 of 2 weight files, b\.safetensors"):
        read_model(model)
    (model / "b.safetensors").write_bytes(TENSORS)
    assert read_model(model).path == model


@pytest.mark.parametrize("shards", [{}, {"x": "../a.safetensors"}, {"x": "a.bin"}, {"x": 1}, [], None])
def test_an_index_stays_in_its_folder(model: Path, shards: object) -> None:
    """Shards are safetensors files of the same folder, by plain names."""
    (model / "model.safetensors").rename(model.parent / "a.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(FolderError, match="does not map"):
        read_model(model)


def test_an_adapter_is_not_a_model(model: Path, adapter: Path) -> None:
    """transformers would follow an adapter's base model to wherever it points, so both kinds are kept apart."""
    with pytest.raises(FolderError, match="is an adapter"):
        read_model(adapter)
    (adapter / "adapter_config.json").rename(model / "adapter_config.json")
    with pytest.raises(FolderError, match="is an adapter"):
        read_model(model)


def test_an_adapter_is_hashed_with_its_configuration(adapter: Path) -> None:
    """Another alpha is another adapter."""
    before = read_adapter(adapter)
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "lora_alpha": 4}')
    assert before.path == adapter
    assert read_adapter(adapter).sha256 != before.sha256


def test_a_broken_adapter_is_refused(adapter: Path) -> None:
    """Pickled weights, missing weights, a configuration of something else, and a plain file."""
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(FolderError, match="pickle"):
        read_adapter(adapter)
    (adapter / "adapter_model.bin").unlink()
    with pytest.raises(FolderError, match=r"adapter_model\.safetensors is missing"):
        read_adapter(adapter)
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(FolderError, match="peft_type"):
        read_adapter(adapter)
    with pytest.raises(FolderError, match="no folder"):
        read_adapter(adapter / "adapter_config.json")


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff{}", b"[" * 100_000, b'"' + b"x" * 17_000_000 + b'"'])
def test_json_that_is_no_small_object_is_refused(tmp_path: Path, content: bytes) -> None:
    """Wrong, deeply nested and huge files end in the same kind of error."""
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(FolderError):
        read_object(tmp_path / "config.json")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=64) | st.binary(max_size=64).map(lambda tail: TENSORS[:20] + tail))
def test_a_head_is_accepted_only_if_its_header_fits(tmp_path: Path, content: bytes) -> None:
    """Any bytes are either a plausible safetensors file or refused; a header never reaches beyond the end."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    plausible = content[8:9] == b"{" and int.from_bytes(content[:8], "little") <= len(content) - 8
    try:
        check_safetensors(path)
    except FolderError:
        assert not plausible
    else:
        assert plausible
