"""Model and adapter folders on the disk: which are accepted, and by which hash they are known.

Accepted is what can be loaded without running anything from the folder: safetensors, JSON and tokenizer tables. A
folder whose weights are pickled is refused. The checks read file heads and small JSON files only: they find the wrong
folder, an unfinished download or a Git LFS pointer, and do not prove that the weights load. Links are followed, since
the Hugging Face cache is made of them: a folder given by path is the operator's choice. No model library is imported.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

_MODEL_HASHED = (CONFIG, TOKENIZER, "*.safetensors")
_ADAPTER_HASHED = (ADAPTER_CONFIG, ADAPTER_WEIGHTS)
_TOKENIZERS = ((TOKENIZER,), ("tokenizer.model",), ("vocab.json", "merges.txt"))
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
_JSON_BYTES = 16 * 1024 * 1024
_SHARDS = 4096
_HEADER_BYTES = 100_000_000  # the bound of the safetensors format itself
_LFS_POINTER = b"version https://git-lfs"


class WeightsError(Exception):
    """Anything that keeps weights from being had. The message is for the operator and holds no secrets.

    WeightsError
     ├── FolderError             a folder that is incomplete, damaged or pickled
     ├── UnknownModel            neither a known name nor a folder
     ├── DiskFull                too little room, found before or while writing
     ├── CacheError              the cache folder cannot be written
     ├── ConversionFailed        a verified file could not be turned into a model folder
     └── DownloadError
          ├── SourceUnavailable  one source did not answer, or not with the file
          ├── WrongHash          a source gave another file
          └── NoSource           every source failed; names each with what it said
    """


class FolderError(WeightsError):
    """A folder that is incomplete, damaged, or holds its weights in pickle files only."""


@dataclass(frozen=True)
class ModelFolder:
    """A folder that transformers can load offline, and the name to show for it."""

    path: Path
    name: str
    known_sha256: str | None = field(default=None, repr=False)
    """The folder's hash where its maker wrote it down."""

    @cached_property
    def weights_sha256(self) -> str:
        """`folder_sha256` over `config.json`, `tokenizer.json` and `*.safetensors`; reads them all at first use.

        Raises:
            FolderError: a file cannot be read.
        """
        return self.known_sha256 or folder_sha256(self.path, _MODEL_HASHED)


@dataclass(frozen=True, slots=True)
class AdapterFolder:
    """A PEFT adapter. `sha256` is `folder_sha256` over its configuration and weights."""

    path: Path
    sha256: str


def read_model(path: Path) -> ModelFolder:
    """Check a Hugging Face causal-LM folder.

    Raises:
        FolderError: what is missing or not accepted, and what to do about it.
    """
    _require_folder(path)
    if (path / ADAPTER_CONFIG).exists():
        # transformers would load the base model that this file names, from wherever it says.
        raise FolderError(f"{path} is an adapter, not a model: give it beside its base model")
    if not (path / CONFIG).is_file():
        raise FolderError(f"{path} is no Hugging Face model folder: {CONFIG} is missing")
    if not isinstance(read_object(path / CONFIG).get("model_type"), str):
        raise FolderError(f"{path / CONFIG} names no model_type")
    for weights in _weight_files(path):
        check_safetensors(weights)
    if not any(all((path / name).is_file() for name in names) for names in _TOKENIZERS):
        raise FolderError(f"{path} has no tokenizer (tokenizer.json, tokenizer.model, or vocab.json with merges.txt)")
    return ModelFolder(path=path, name=path.resolve().name)


def read_adapter(path: Path) -> AdapterFolder:
    """Check a PEFT adapter folder. Whether the adapter fits a model is seen at load.

    Raises:
        FolderError: what is missing or not accepted.
    """
    _require_folder(path)
    if not (path / ADAPTER_CONFIG).is_file():
        raise FolderError(f"{path} is no adapter folder: {ADAPTER_CONFIG} is missing")
    if not isinstance(read_object(path / ADAPTER_CONFIG).get("peft_type"), str):
        raise FolderError(f"{path / ADAPTER_CONFIG} names no peft_type")
    if not (path / ADAPTER_WEIGHTS).is_file():
        _refuse_pickles(path)
        raise FolderError(f"{path} holds no adapter: {ADAPTER_WEIGHTS} is missing")
    check_safetensors(path / ADAPTER_WEIGHTS)
    return AdapterFolder(path=path, sha256=folder_sha256(path, _ADAPTER_HASHED))


def folder_sha256(folder: Path, patterns: Iterable[str] = _MODEL_HASHED) -> str:
    """SHA-256 over `name, NUL, SHA-256 of the content, newline` for the matching files in order of their names.

    Raises:
        FolderError: a file cannot be read.
    """
    whole = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern)}):
        try:
            whole.update(f"{path.name}\0{file_sha256(path)}\n".encode())
        except OSError as exc:
            raise FolderError(f"cannot read {path}: {exc.strerror}") from exc
    return whole.hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_object(path: Path) -> Mapping[str, Any]:
    """A JSON object from a file of at most 16 MiB.

    Raises:
        FolderError: the file is missing, too large, or no JSON object.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_JSON_BYTES + 1)
    except OSError as exc:
        raise FolderError(f"cannot read {path}: {exc.strerror}") from exc
    if len(content) > _JSON_BYTES:
        raise FolderError(f"{path} is larger than {_JSON_BYTES} bytes")
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as exc:
        raise FolderError(f"{path} is no JSON") from exc
    if not isinstance(value, dict):
        raise FolderError(f"{path} holds no JSON object")
    return value


def check_safetensors(path: Path) -> None:
    """Look at a file's head: 8 bytes of header length (little-endian), then the header, a JSON object.

    Raises:
        FolderError: the file is something else or ends inside its header.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(len(_LFS_POINTER))
    except OSError as exc:
        raise FolderError(f"cannot read {path}: {exc.strerror}") from exc
    if head == _LFS_POINTER:
        raise FolderError(f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` in its repository")
    header = int.from_bytes(head[:8], "little")
    if len(head) < 9 or head[8:9] != b"{" or header > min(size - 8, _HEADER_BYTES):
        raise FolderError(f"{path} is no safetensors file, or only its beginning")


def _require_folder(path: Path) -> None:
    if not path.is_dir():
        raise FolderError(f"{path} is no folder")


def _weight_files(path: Path) -> list[Path]:
    """The one weights file, or the shards that the index names."""
    if (path / WEIGHTS).is_file():
        return [path / WEIGHTS]
    if not (path / WEIGHTS_INDEX).is_file():
        _refuse_pickles(path)
        if any(path.glob("*.gguf")):
            raise FolderError(f"{path} holds a GGUF file: only known models are converted (`smallcall models pull`)")
        raise FolderError(f"{path} holds no weights: neither {WEIGHTS} nor {WEIGHTS_INDEX}")
    shards = read_object(path / WEIGHTS_INDEX).get("weight_map")
    names = set(shards.values()) if isinstance(shards, dict) and all(_is_shard(n) for n in shards.values()) else set()
    if not 0 < len(names) <= _SHARDS:
        raise FolderError(f"{path / WEIGHTS_INDEX} does not map weights to safetensors files of the same folder")
    missing = sorted(name for name in names if not (path / name).is_file())
    if missing:
        raise FolderError(f"{path} lacks {len(missing)} of {len(names)} weight files, {missing[0]} among them")
    return [path / name for name in sorted(names)]


def _is_shard(name: object) -> bool:
    return isinstance(name, str) and name.endswith(".safetensors") and Path(name).name == name


def _refuse_pickles(path: Path) -> None:
    pickles = sorted(found.name for pattern in _PICKLES for found in path.glob(pattern))
    if pickles:
        raise FolderError(
            f"{path} holds its weights as pickle ({pickles[0]}), which can run code when it is loaded: "
            "convert them to safetensors with `save_pretrained` in an environment where you trust them"
        )
