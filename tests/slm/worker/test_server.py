"""The worker through its only door: a real process, a real socket, a tiny model."""

import asyncio
import json
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
import structlog
from structlog.testing import capture_logs

from slm.engine.engine import DraftEngine
from slm.format.pattern import parse_draft
from slm.protocol import (
    MAX_LINE_BYTES,
    Done,
    DraftCommand,
    DraftFailed,
    Event,
    Info,
    InfoCommand,
    PlanMade,
    Started,
    Token,
    encode,
    event_decoder,
)
from slm.worker.server import STALLED_S, Bounds, WorkerServer, listening_socket, run
from tests.slm.conftest import command
from tests.slm.worker.test_scheduler import Rig, Tripping


@asynccontextmanager
async def connected(path: Path) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to the worker behind a socket."""
    reader, writer = await asyncio.open_unix_connection(str(path), limit=MAX_LINE_BYTES)
    try:
        yield reader, writer
    finally:
        writer.close()


async def answers(path: Path, line: bytes) -> list[Event]:
    """All events that answer one line."""
    async with connected(path) as (reader, writer):
        writer.write(line)
        return [event_decoder.decode(answer) async for answer in reader]


class Worker:
    """A worker process and its socket."""

    def __init__(self, folder: Path, *, model: Path, arguments: tuple[str, ...] = ()) -> None:
        self.socket = folder / "w.sock"
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "slm.worker.server", "--socket", str(self.socket), "--model", str(model),
                 "--threads", "1", *arguments],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
            )  # fmt: skip

    def wait(self, timeout_s: float = 60.0) -> None:
        """Until the socket is there, or the process has ended."""
        end = time.monotonic() + timeout_s
        while not self.socket.exists() and self.process.poll() is None:
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.05)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait(10)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def connected(self) -> AbstractAsyncContextManager[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        return connected(self.socket)

    async def ask(self, line: bytes | DraftCommand | InfoCommand) -> list[Event]:
        """All events that answer one line."""
        return await answers(self.socket, line if isinstance(line, bytes) else encode(line) + b"\n")


@pytest.fixture(scope="module")
def worker(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """A running worker with room for the waiting drafts of a test."""
    made = Worker(tmp_path_factory.mktemp("w"), model=llama_folder, arguments=("--max-queue", "24"))
    made.wait()
    yield made
    made.stop()


async def test_a_worker_says_what_is_loaded(worker: Worker) -> None:
    """`info` answers with one event, hashes included; the socket is its owner's alone."""
    (info,) = await worker.ask(InfoCommand())
    assert isinstance(info, Info)
    assert info.architecture == "LlamaForCausalLM"
    assert len(info.weights_sha256) == 64
    assert stat.S_IMODE(worker.socket.stat().st_mode) == 0o600


async def test_a_draft_streams_in_order(worker: Worker) -> None:
    """Started, tokens, the plan, tokens, the end; then the worker closes."""
    events = await worker.ask(command(tool_choice="required", max_tokens=400))
    kinds = [type(event) for event in events]
    done = events[-1]
    assert isinstance(done, Done)
    assert kinds[0] is Started
    assert Token in kinds[: kinds.index(PlanMade)]
    assert "".join(event.text for event in events if isinstance(event, Token)) == done.text
    if done.finish == "stop":
        assert parse_draft(done.text).kind == "calls"


async def test_twenty_drafts_at_once_are_twenty_drafts(worker: Worker) -> None:
    """Concurrent drafts all end, and equal commands get equal drafts."""
    asked = [command(messages=[{"role": "user", "content": f"City {n % 5}?"}], max_tokens=24) for n in range(20)]
    ends = [events[-1] for events in await asyncio.gather(*map(worker.ask, asked))]
    assert all(isinstance(end, Done) for end in ends)
    texts = [end.text for end in ends if isinstance(end, Done)]
    assert texts == texts[:5] * 4


@pytest.mark.parametrize(
    ("line", "place"),
    [
        (b"\n", ""),
        (b"not json\n", ""),
        (b"\xff\xfe\n", ""),
        (b'{"op": "dance"}\n', r"\$\.op"),
        (b'{"op": "draft", "messages": 3, "tools": []}\n', r"\$\.messages"),
        (b'{"op": "draft", "messages": [], "tools": [], "temperature": 1}\n', "temperature"),
        (b'{"op": "draft", "messages": [], "tools": [], "max_tokens": NaN}\n', ""),
        (b'{"op": "draft", "messages": [], "tools": [], "max_tokens": -1}\n', "max_tokens"),
        (b'{"op": "draft", "messages": [], "tools": [{}]}\n', r"tools\[0\]"),
        (b'{"op": "draft", "messages": [], "tools": [' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"]}\n", "deep"),
        (b'{"op": "draft", "messages": "' + b"x" * (MAX_LINE_BYTES + 100) + b'"}\n', "bytes"),
    ],
    ids=["empty", "text", "bytes", "op", "type", "unknown", "nan", "range", "tool", "depth", "size"],
)
async def test_a_malformed_command_is_answered_and_harms_nothing(worker: Worker, line: bytes, place: str) -> None:
    """Whatever stands in the line, the answer is one `bad_request` that says where, and the worker lives on."""
    (failed,) = await worker.ask(line)
    assert isinstance(failed, DraftFailed)
    assert failed.code == "bad_request"
    assert re.search(place, failed.message)
    assert isinstance((await worker.ask(InfoCommand()))[0], Info)


async def test_a_client_that_goes_away_frees_its_slot(worker: Worker) -> None:
    """Closing the connection cancels: long drafts that nobody reads do not hold up the next one."""
    longest = command(max_tokens=1500, deadline_s=120.0, tool_choice="required")
    for _ in range(8):
        async with worker.connected() as (reader, writer):
            writer.write(encode(longest) + b"\n")
            await reader.readline()
    began = time.monotonic()
    assert isinstance((await worker.ask(command(max_tokens=4)))[-1], Done)
    assert time.monotonic() - began < 2.0


async def test_a_client_that_sends_half_a_command_and_leaves_is_no_matter(worker: Worker) -> None:
    """An unfinished line, or none, ends with the connection."""
    for line in (b"", b'{"op": "dra'):
        async with worker.connected() as (_, writer):
            writer.write(line)
    assert isinstance((await worker.ask(InfoCommand()))[0], Info)


async def test_a_full_queue_is_said_at_once(worker: Worker) -> None:
    """Of more drafts at once than may wait, some are refused as `queue_full` and none is lost."""
    asked = command(max_tokens=32, tool_choice="required")
    ends = [events[-1] for events in await asyncio.gather(*(worker.ask(asked) for _ in range(60)))]
    codes = [
        end.code if isinstance(end, DraftFailed) else "drafted" for end in ends if isinstance(end, DraftFailed | Done)
    ]
    assert len(codes) == 60
    assert set(codes) == {"queue_full", "drafted"}
    assert codes.count("drafted") >= 24


async def test_a_killed_worker_is_replaced_and_a_terminated_one_ends_cleanly(
    llama_folder: Path, tmp_path: Path
) -> None:
    """`kill -9` shows as a closed stream without an end, and a new worker takes the same path over. On SIGTERM, even
    while drafting: exit code 0, no socket left, nothing on stdout, JSON lines on stderr."""
    long = encode(command(max_tokens=1500, tool_choice="required")) + b"\n"
    first = Worker(tmp_path, model=llama_folder)
    try:
        first.wait()
        async with first.connected() as (reader, writer):
            writer.write(long)
            await reader.readline()
            first.process.kill()
            whole, _, _ = (await reader.read()).rpartition(b"\n")
            told = [event_decoder.decode(line) for line in whole.splitlines()]
        assert not any(isinstance(event, Done | DraftFailed) for event in told)
    finally:
        first.stop()
    assert first.socket.exists()
    second = Worker(tmp_path, model=llama_folder)
    try:
        for _ in range(600):
            try:
                (info,) = await second.ask(InfoCommand())
                break
            except ConnectionRefusedError:
                await asyncio.sleep(0.1)
        assert isinstance(info, Info)
        async with second.connected() as (reader, writer):
            writer.write(long)
            await reader.readline()
            second.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(second.process.wait, 15) == 0
        assert not second.socket.exists()
        assert second.process.stdout is not None
        assert second.process.stdout.read() == b""
        events = [json.loads(line)["event"] for line in second.log.read_text().splitlines()]
        assert events == ["ready", "ended"]
    finally:
        second.stop()


async def test_a_worker_whose_engine_hangs_says_so(llama: DraftEngine, tmp_path: Path) -> None:
    """A step that takes longer than `STALLED_S` is told instead of what is loaded; once it is over, all is well."""
    rig = Rig(llama)
    server = await asyncio.start_unix_server(WorkerServer(llama, rig.scheduler).serve, path=tmp_path / "w.sock")
    asked = encode(InfoCommand()) + b"\n"
    try:
        _, told = rig.hold()
        for now, kind in ((STALLED_S, Info), (STALLED_S + 1, DraftFailed)):
            rig.clock.now = now
            assert isinstance((await answers(tmp_path / "w.sock", asked))[0], kind)
        rig.engine.gate.set()
        assert isinstance(await asyncio.to_thread(told.end), DraftFailed | Done)
        rig.submit()[1].end()
        assert isinstance((await answers(tmp_path / "w.sock", asked))[0], Info)
    finally:
        rig.engine.gate.set()
        server.close()
        assert rig.scheduler.stop(10)


class Dying(Tripping):
    """An engine that ends the thread that runs it."""

    @property
    def info(self) -> Info:
        return self._engine.info

    @property
    def slots(self) -> int:  # type: ignore[override]
        if threading.current_thread().name == "engine":
            raise SystemError("broken")
        return 1


async def test_a_worker_ends_when_its_engine_does(llama: DraftEngine, tmp_path: Path) -> None:
    """Instead of leaving drafts unanswered: that end was not wanted, and the log says where it came from."""
    listening = listening_socket(tmp_path / "w.sock")
    with capture_logs() as logs:
        running = asyncio.create_task(
            run(Dying(llama), listening, Bounds(4), structlog.get_logger(), os.getppid())  # type: ignore[arg-type]
        )
        async with connected(tmp_path / "w.sock") as (_, writer):
            writer.write(encode(command()) + b"\n")
            assert not await asyncio.wait_for(running, 10)
    assert [log["event"] for log in logs] == ["ready", "draft_crashed", "ended"]


def test_a_worker_ends_with_the_process_that_started_it(llama_folder: Path, tmp_path: Path) -> None:
    """When its parent is killed the worker notices and goes, socket included."""
    path = tmp_path / "w.sock"
    script = (
        "import subprocess, sys, time; "
        f"p = subprocess.Popen([sys.executable, '-m', 'slm.worker.server', '--socket', {str(path)!r}, "
        f"'--model', {str(llama_folder)!r}, '--threads', '1'], stderr=subprocess.DEVNULL); "
        "print(p.pid, flush=True); time.sleep(120)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    try:
        worker = int(parent.stdout.readline())
        end = time.monotonic() + 60
        while not path.exists():
            assert time.monotonic() < end
            time.sleep(0.05)
    finally:
        parent.kill()
        parent.wait(10)
        parent.stdout.close()
    end = time.monotonic() + 15
    while path.exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    while _runs(worker):
        assert time.monotonic() < end
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_a_worker_that_cannot_start_says_why(tmp_path: Path) -> None:
    """Exit code 2 and one JSON line with the reason, and no socket."""
    ended = subprocess.run(
        [sys.executable, "-m", "slm.worker.server", "--socket", str(tmp_path / "w.sock"), "--model", str(tmp_path)],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stdout == b""
    (line,) = ended.stderr.splitlines()
    assert json.loads(line)["event"] == "cannot_start"
    assert "config.json is missing" in json.loads(line)["error"]
    assert not (tmp_path / "w.sock").exists()


def test_a_socket_replaces_nothing_but_a_socket(tmp_path: Path) -> None:
    """A file at the socket's path is left alone; a dead worker's socket gives way."""
    taken = tmp_path / "taken"
    taken.write_text("precious")
    with pytest.raises(OSError, match="no socket"):
        listening_socket(taken)
    assert taken.read_text() == "precious"
    listening_socket(tmp_path / "w.sock").close()
    listening_socket(tmp_path / "w.sock").close()
    assert {path.name for path in tmp_path.iterdir()} == {"taken", "w.sock"}
