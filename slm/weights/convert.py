"""`python -m slm.weights.convert GGUF FOLDER SHA256`: a known model's GGUF file becomes a safetensors folder.

Runs in a process of its own: whoever asks for a model (the command line, the gateway) never imports torch. The file's
hash is checked before it comes here, so its content is known and not hostile. The folder is usable only once its
manifest stands, which is written last. Weights are stored in bfloat16, the dtype that the model was published in.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from slm.weights.download import DiskFull, writing_to
from slm.weights.folders import FolderError, WeightsError, file_sha256, folder_sha256

CONVERTER_VERSION = 1
"""Part of the cache's path: raised when the same file would become another folder."""
MANIFEST = "smallcall_manifest.json"
DTYPE = "bfloat16"

_EXIT_DISK_FULL = 28
_MANIFEST_BYTES = 1024 * 1024
_ROUNDINGS_APART = 0.25
"""Two roundings of one matrix lie nearer than this share of its norm; matrices of their own lie further than all."""


class ConversionFailed(WeightsError):
    """A verified file could not be turned into a model folder."""


class FileEntry(msgspec.Struct, frozen=True):
    """One file of a converted folder."""

    bytes: int
    sha256: str


class ConversionManifest(msgspec.Struct, frozen=True, kw_only=True):
    """The record of a conversion: source, converter, versions and the files of the folder."""

    source_sha256: str
    converter_version: int
    transformers: str
    dtype: str
    weights_sha256: str
    """`slm.weights.folders.folder_sha256` of the model."""
    files: Mapping[str, FileEntry]


def write_manifest(folder: Path, source_sha256: str, transformers: str) -> None:
    """Hash every file, bring all of them to the disk, and say so in the manifest.

    Raises:
        OSError, FolderError: a file cannot be read or written.
    """
    paths = sorted(path for path in folder.iterdir() if path.name != MANIFEST)
    for path in paths:
        path.chmod(0o644)  # safetensors writes 0600, which another user of a shared cache could not read
        _sync(path)
    manifest = ConversionManifest(
        source_sha256=source_sha256,
        converter_version=CONVERTER_VERSION,
        transformers=transformers,
        dtype=DTYPE,
        weights_sha256=folder_sha256(folder),
        files={path.name: FileEntry(path.stat().st_size, file_sha256(path)) for path in paths},
    )
    (folder / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2))
    _sync(folder / MANIFEST)


def read_manifest(folder: Path) -> ConversionManifest:
    """The manifest of a converted folder.

    Raises:
        FolderError: there is none, or it is not one of ours.
    """
    try:
        with (folder / MANIFEST).open("rb") as file:
            return msgspec.json.decode(file.read(_MANIFEST_BYTES), type=ConversionManifest)
    except (OSError, msgspec.MsgspecError) as exc:
        raise FolderError(f"{folder} has no readable {MANIFEST}") from exc


def check_files(folder: Path, manifest: ConversionManifest, *, content: bool) -> None:
    """Compare a folder with its manifest: the sizes of all files, and their hashes where `content` is asked for.

    Raises:
        FolderError: a file is missing or another one.
    """
    for name, entry in manifest.files.items():
        path = folder / name
        try:
            if path.stat().st_size != entry.bytes or (content and file_sha256(path) != entry.sha256):
                raise FolderError(f"{path} is not the file that was converted")
        except OSError as exc:
            raise FolderError(f"cannot read {path}: {exc.strerror}") from exc


def convert_in_process_of_its_own(gguf: Path, folder: Path, sha256: str, timeout_s: float = 900.0) -> None:
    """Convert `gguf`, whose hash is `sha256`, into the empty `folder`.

    Raises:
        DiskFull: no room for the folder.
        ConversionFailed: anything else, with the last thing that the process said.
    """
    command = [sys.executable, "-P", "-m", "slm.weights.convert", str(gguf), str(folder), sha256]
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as exc:
        raise ConversionFailed(f"converting {gguf.name} took more than {timeout_s:.0f} s") from exc
    if done.returncode == _EXIT_DISK_FULL:
        raise DiskFull(f"the disk is full: converting {gguf.name} into {folder.parent} failed")
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().rpartition("\n")[2][:300]
        raise ConversionFailed(f"converting {gguf.name} ended with code {done.returncode}: {said or 'no message'}")


def convert(gguf: Path, folder: Path, sha256: str) -> None:
    """The conversion itself; imports torch and transformers.

    Raises:
        DiskFull, CacheError: `folder` cannot be written.
        Exception: whatever transformers says to a file that it cannot read.
    """
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    source: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True, "trust_remote_code": False}
    # Without `dequantize` an installed `kernels` package would leave the weights packed in their GGUF blocks.
    plain = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, dtype=getattr(torch, DTYPE), quantization_config=plain, **source
    )
    # A model that remembers having been quantised refuses to be saved, although its weights are plain by now.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    _tie_two_roundings(model)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
    tokenizer = _learned_tokens(gguf, tokenizer)
    with writing_to(folder):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_manifest(folder, sha256, transformers.__version__)


def _tie_two_roundings(model: Any) -> None:
    """Tie the embedding to the output matrix where a file holds one matrix twice, rounded in two ways.

    Some files keep the tied matrix of a model once for reading and once, more finely, for the output. The finer one is
    taken for both. Matrices of a model that has two of its own have nothing in common and stay.
    """
    output, read = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    if output is read or output.shape != read.shape:
        return
    kept = output.detach().float()
    if (read.detach().float() - kept).norm() < _ROUNDINGS_APART * kept.norm():
        model.get_input_embeddings().weight = output
        model.config.tie_word_embeddings = True


def _learned_tokens(gguf: Path, tokenizer: Any) -> Any:
    """The tokenizer that the model has learned with, where transformers reads another out of a GGUF file.

    `smollm` gets its first step back: every digit stands alone, then words are split as by GPT-2. The merges know no
    pair of digits, but white space before a digit would come out in other tokens ("\\n\\n1", two spaces and a digit).

    `qwen2` loses the names of rows that no token has ("[PAD151665]" is text like any other), and becomes a tokenizer
    that is loaded as its file says: by its own class it would compose characters, and a text would not come back.
    """
    import gguf as gguf_format
    from tokenizers import Tokenizer, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    fields = gguf_format.GGUFReader(gguf).fields
    kind = fields.get(gguf_format.Keys.Tokenizer.PRE)
    if kind is not None and kind.contents() == "smollm":
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    if kind is None or kind.contents() != "qwen2":
        return tokenizer
    types = fields[gguf_format.Keys.Tokenizer.TOKEN_TYPE].contents()
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    named = described["model"]["vocab"].items()
    described["model"]["vocab"] = {name: id_ for name, id_ in named if types[id_] != gguf_format.TokenType.UNUSED}
    described["normalizer"] = None
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(described)),
        eos_token=tokenizer.eos_token,
        pad_token=tokenizer.pad_token,
        chat_template=tokenizer.chat_template,
    )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def main(arguments: list[str]) -> int:
    """Exit code 0, or 28 where the disk is full; any other error ends in a traceback, whose last line says why."""
    gguf, folder, sha256 = arguments
    from safetensors import SafetensorError

    try:
        convert(Path(gguf), Path(folder), sha256)
    except DiskFull:
        return _EXIT_DISK_FULL
    except SafetensorError as exc:  # a Rust error: the number of the system's error stands in its text only
        if f"os error {errno.ENOSPC}" in str(exc):
            return _EXIT_DISK_FULL
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
