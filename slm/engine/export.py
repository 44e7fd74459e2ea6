"""A base model with its adapter merged in, as files for other engines.

A safetensors folder in bfloat16 (vLLM, transformers: Hugging Face's layout, the base's own tokenizer files), and GGUF
files for llama.cpp. `smallcall_export.json` beside them says what was merged. The folder appears under its name whole
or not at all.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, get_args

import msgspec
import torch

from slm.engine.model import LoadedModel, LoadError, load
from slm.weights.download import writing_to
from slm.weights.folders import TOKENIZER, WeightsError
from slm.weights.gguf_file import Packing, write_gguf

Format = Literal["safetensors", "q8_0", "f16"]
FORMATS: tuple[Format, ...] = get_args(Format)
FACTS = "smallcall_export.json"

_TOKENIZER_FILES = (
    TOKENIZER, "tokenizer_config.json", "tokenizer.model", "vocab.json", "merges.txt", "special_tokens_map.json",
    "added_tokens.json", "chat_template.jinja",
)  # fmt: skip


class ExportError(WeightsError):
    """A model that cannot be exported in this way; the message says why."""


def export(
    base: Path,
    adapter: Path | None,
    target: Path,
    formats: Sequence[Format],
    *,
    gguf: Path | None = None,
    name: str | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> list[Path]:
    """Merge and write into the new folder `target`; the files and the folder that were asked for, as paths.

    Args:
        base: the base model's folder.
        gguf: the GGUF file that the base came in, whose tokenizer and settings a GGUF file takes over.
        name: of the GGUF files; None takes the base's.

    Raises:
        ExportError: there is something at `target`, the model cannot be loaded, or a GGUF file is asked for of a model
            that came in none.
        DiskFull, CacheError: `target` cannot be written.
    """
    packings: list[Packing] = [one for one in formats if one != "safetensors"]
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ExportError(f"{target} is there already: name a new folder")
    if packings and (gguf is None or not gguf.is_file()):
        raise ExportError(
            "a GGUF file takes its tokenizer from the one that the base model came in, and there is none"
            + (f" at {gguf}: remove the model's folder in the cache and pull it anew" if gguf else "")
        )
    tell("loading and merging")
    try:
        loaded = load(base, adapter)
    except LoadError as exc:
        raise ExportError(str(exc)) from exc
    stem = name or base.resolve().name
    with writing_to(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
        try:
            for packing in packings:
                assert gguf is not None
                tell(f"writing GGUF, {packing}")
                _write_gguf(loaded, gguf, part / f"{stem}-{packing}.gguf", packing)
            if "safetensors" in formats:
                tell("writing safetensors")
                _write_folder(loaded, base, part)
            (part / FACTS).write_bytes(msgspec.json.format(msgspec.json.encode(loaded.info), indent=2))
            _publish(part, target)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    made = [target / f"{stem}-{packing}.gguf" for packing in packings]
    return [target, *made] if "safetensors" in formats else made


def _write_gguf(loaded: LoadedModel, base: Path, target: Path, packing: Packing) -> None:
    try:
        write_gguf(loaded.model, base, target, packing)
    except ValueError as exc:
        raise ExportError(str(exc)) from exc


def _write_folder(loaded: LoadedModel, base: Path, folder: Path) -> None:
    """Gives up the model's float32 weights."""
    loaded.model.to(torch.bfloat16).save_pretrained(folder)
    for file in _TOKENIZER_FILES:
        if (base / file).is_file():
            shutil.copyfile(base / file, folder / file)


def _publish(part: Path, target: Path) -> None:
    part.chmod(0o755)
    for path in part.iterdir():
        path.chmod(0o644)
    if target.exists():
        target.rmdir()
    os.replace(part, target)
