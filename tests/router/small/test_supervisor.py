"""The worker's life: started, killed, hanging, talking too much, impossible to start; processes are real."""

import asyncio
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from router.small.supervisor import Patience, Supervisor, WorkerCommand
from router.small.worker_client import SmallModelError
from slm import protocol
from tests.router.fake_worker import INFO, FakeCommand

QUICK = Patience(start=20, poll=0.02, check_every=0.05, hung=0.5, stop=5, backoff=(0.05, 0.1))
COMMAND = protocol.DraftCommand(messages=[], tools=[])


async def until(true: Callable[[], object], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_killed_worker_is_replaced_and_drafts_fail_at_once_meanwhile(tmp_path: Path) -> None:
    """Another process comes up; until then a draft is refused without waiting; at the end none is left."""
    supervisor = Supervisor(FakeCommand(tmp_path / "s"), QUICK)  # type: ignore[arg-type]
    with pytest.raises(SmallModelError, match="starting"):
        supervisor.events(COMMAND)
    async with supervisor.running():
        await until(lambda: supervisor.info)
        assert supervisor.info == INFO
        async with supervisor.events(COMMAND) as events:
            assert [type(event) async for event in events][-1] is protocol.Done
        first = supervisor.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await until(lambda: supervisor.info is None)
        with pytest.raises(SmallModelError) as caught:
            supervisor.events(COMMAND)
        assert caught.value.code == "worker_unavailable"
        await until(lambda: supervisor.info)
        assert supervisor.pid not in (None, first)
        last = supervisor.pid
    assert not any((supervisor.pid, supervisor.info))
    with pytest.raises(ProcessLookupError):
        os.kill(last or 0, 0)


@pytest.mark.parametrize("stalls", [False, True])
async def test_a_worker_that_hangs_is_killed_and_replaced(tmp_path: Path, stalls: bool) -> None:
    """One that stops answering, though its process lives, does not stay; nor does one that says that its engine
    hangs."""
    supervisor = Supervisor(FakeCommand(tmp_path / "s", infos=1, stalls=stalls), QUICK)  # type: ignore[arg-type]
    async with supervisor.running():
        await until(lambda: supervisor.starts >= 2 and supervisor.info)


async def test_a_worker_that_writes_a_megabyte_to_its_log_is_not_stopped_by_it(tmp_path: Path) -> None:
    """The pipe is always read, and what reaches our log is bounded."""
    supervisor = Supervisor(FakeCommand(tmp_path / "s", chatter=1_500_000), QUICK)  # type: ignore[arg-type]
    with capture_logs() as logs:
        async with supervisor.running():
            await until(lambda: supervisor.info)
    assert supervisor.starts == 1
    lines = [log["line"] for log in logs if log["event"] == "worker"]
    assert lines
    assert max(map(len, lines)) <= 2000


@dataclass(frozen=True)
class Impossible:
    """A command that cannot be started."""

    socket: Path

    def arguments(self) -> list[str]:
        return [str(self.socket / "no-such-program")]


async def test_a_worker_that_cannot_be_started_is_tried_again_and_told(tmp_path: Path) -> None:
    """The gateway lives on; the log says why, and pauses grow to their bound."""
    supervisor = Supervisor(Impossible(tmp_path), QUICK)  # type: ignore[arg-type]
    with capture_logs() as logs:
        async with supervisor.running():
            await until(lambda: supervisor.starts >= 3)
    ended = [log for log in logs if log["event"] == "worker_ended"]
    assert "No such file" in ended[0]["how"]
    assert [log["restart_in_s"] for log in ended[:2]] == [0.05, 0.1]


def test_the_command_line_carries_every_setting(tmp_path: Path) -> None:
    """And isolates the worker from the folder that the gateway was started in."""
    line = WorkerCommand(
        tmp_path / "s", tmp_path, tmp_path / "a", 3, 9, "bfloat16", 64, ("bm25", 5), 2.5, "cuda"
    ).arguments()
    assert line[1:4] == ["-P", "-m", "slm.worker.server"]
    for option in (
        ["--max-queue", "9"],
        ["--max-wait", "2.5"],
        ["--device", "cuda"],
        ["--threads", "3"],
        ["--dtype", "bfloat16"],
        ["--cache-mb", "64"],
        ["--shortlist", "bm25"],
        ["--shortlist-keep", "5"],
        ["--adapter", str(tmp_path / "a")],
    ):
        assert option == line[line.index(option[0]) :][:2]
    plain = WorkerCommand(tmp_path, tmp_path, None, 0, 9, "float32", 0).arguments()
    assert not {"--threads", "--shortlist"} & {*plain}
