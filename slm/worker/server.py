"""The process that hosts the small model: `python -m slm.worker.server --socket PATH --model FOLDER`.

The socket (mode 0600) appears when the model is loaded and goes when the worker ends: on SIGTERM or SIGINT, when the
process that started it is gone, or when the engine's thread has ended. Nothing is written to stdout; stderr gets JSON
lines without prompts. The main thread speaks `slm.protocol` with any number of connections, one command each; one other
thread runs the engine.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import os
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import msgspec
import structlog
import torch
from structlog.typing import FilteringBoundLogger
from transformers.utils import logging as transformers_logging

from slm.engine.engine import CACHE_BYTES, DraftEngine
from slm.engine.model import DTYPES, DeviceName, LoadError
from slm.engine.shortlist import KINDS
from slm.malloc import give_back
from slm.protocol import (
    MAX_LINE_BYTES,
    Command,
    CompleteCommand,
    Done,
    DraftCommand,
    DraftFailed,
    Event,
    Info,
    InfoCommand,
    command_decoder,
    encode,
)
from slm.worker.scheduler import Job, Scheduler

COMMAND_TIMEOUT_S = 30.0
"""A connection that sends no command for so long is closed."""
DISCARD_TIMEOUT_S = 2.0
"""Seconds for which the rest of a command that is too long is read and dropped."""
STALLED_S = 30.0
"""An engine that has been at one piece of work for so long, be it a forward pass or a grammar, counts as hung."""
STOP_TIMEOUT_S = 5.0
"""Seconds that the worker waits at its end for a running forward pass."""
PARENT_POLL_S = 0.5
BACKLOG = 1024


class WorkerServer:
    """The socket's side of the worker. Lives in the event loop's thread."""

    def __init__(self, engine: DraftEngine, scheduler: Scheduler) -> None:
        self._engine, self._scheduler = engine, scheduler

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: read its command, answer, close. A client that goes away is no error."""
        try:
            await self._answer(reader, writer)
        except (ConnectionError, TimeoutError):
            pass
        except asyncio.CancelledError:  # Only the end of the worker cancels; asyncio would log it as an error.
            pass
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await asyncio.wait_for(reader.readline(), COMMAND_TIMEOUT_S)
        except ValueError:
            await _send(writer, DraftFailed(code="bad_request", message=f"a line over {MAX_LINE_BYTES} bytes"))
            writer.write_eof()  # A close with bytes unread would cost the client this answer: let it close first.
            await asyncio.wait_for(_until_closed(reader), DISCARD_TIMEOUT_S)
            return
        received = time.monotonic()
        command = _command(line) if line else None
        if isinstance(command, DraftCommand | CompleteCommand):
            await self._draft(command, received, reader, writer)
        elif command is not None:
            await _send(writer, self._info() if isinstance(command, InfoCommand) else command)

    def _info(self) -> Info | DraftFailed:
        """The loaded model, or a failure if the engine hangs, so that a supervisor that polls it finds out."""
        if (silent_s := self._scheduler.silent_s) > STALLED_S:
            return DraftFailed(code="internal", message=f"the engine has been at one step for {silent_s:.0f} s")
        return self._engine.info

    async def _draft(
        self,
        command: DraftCommand | CompleteCommand,
        received: float,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event] = asyncio.Queue()  # Bounded by the draft: about one event a token.
        job = Job(command, lambda event: loop.call_soon_threadsafe(events.put_nowait, event), received)  # type: ignore[arg-type]
        if refusal := self._scheduler.submit(job):
            await _send(writer, refusal)
            return
        tasks = {asyncio.create_task(_pass_on(events, writer)), asyncio.create_task(_until_closed(reader))}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self._scheduler.cancel(job)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _command(line: bytes) -> Command | DraftFailed:
    """The command of a line, or what is wrong with it, by the field's path."""
    try:
        return command_decoder.decode(line)
    except msgspec.MsgspecError as exc:
        return DraftFailed(code="bad_request", message=str(exc))
    except RecursionError:
        return DraftFailed(code="bad_request", message="the command is nested too deeply")


async def _send(writer: asyncio.StreamWriter, event: Event) -> None:
    writer.write(encode(event) + b"\n")
    await writer.drain()


async def _pass_on(events: asyncio.Queue[Event], writer: asyncio.StreamWriter) -> None:
    """Send events until the draft's last one."""
    while True:
        event = await events.get()
        await _send(writer, event)
        if isinstance(event, Done | DraftFailed):
            return


async def _until_closed(reader: asyncio.StreamReader) -> None:
    while await reader.read(65536):
        pass


def listening_socket(path: Path) -> socket.socket:
    """A Unix socket at `path`, for its owner only. It appears when it listens; a dead worker's socket gives way to it.

    Raises:
        OSError: the path is too long, is taken by something else, or cannot be written.
    """
    if path.exists() and not path.is_socket():
        raise FileExistsError(errno.EEXIST, "something that is no socket stands there", str(path))
    hidden = path.with_name(f"{path.name}.{os.getpid()}")
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        listening.bind(str(hidden))
        listening.listen(BACKLOG)
        hidden.rename(path)
    except OSError:
        listening.close()
        hidden.unlink(missing_ok=True)
        raise
    finally:
        os.umask(mask)
    return listening


async def _until_orphaned(parent: int) -> None:
    while os.getppid() == parent:  # noqa: ASYNC110  Nothing can be awaited here: a parent ends silently.
        await asyncio.sleep(PARENT_POLL_S)


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bounds of the queue: drafts that may wait, and the longest expected wait in seconds (None: no bound)."""

    max_queue: int
    max_wait_s: float | None = None


async def run(
    engine: DraftEngine, listening: socket.socket, bounds: Bounds, log: FilteringBoundLogger, parent: int
) -> bool:
    """Serve on a listening socket until a signal comes or the process `parent` is not the parent any more.

    Returns:
        Whether this end was wanted; False where the engine's thread ended by itself.
    """
    ending, lost = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def lose() -> None:
        lost.set()
        loop.call_soon_threadsafe(ending.set)

    scheduler = Scheduler(
        engine,
        max_queue=bounds.max_queue,
        max_wait_s=bounds.max_wait_s,
        clock=time.monotonic,
        crashed=lambda where: log.error("draft_crashed", where=where),
        ended=lose,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)
    orphaned = asyncio.create_task(_until_orphaned(parent))
    orphaned.add_done_callback(lambda _: ending.set())
    scheduler.start()
    server = await asyncio.start_unix_server(
        WorkerServer(engine, scheduler).serve, sock=listening, limit=MAX_LINE_BYTES, backlog=BACKLOG
    )
    log.info("ready", model=engine.info.model, pid=os.getpid())
    await ending.wait()
    server.close()
    orphaned.cancel()
    log.info("ended", in_time=await asyncio.to_thread(scheduler.stop, STOP_TIMEOUT_S))
    return not lost.is_set()


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m slm.worker.server", description=__doc__.partition("\n")[0])
    parser.add_argument("--socket", type=Path, required=True, help="path of the Unix socket to serve on")
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder: config, tokenizer, safetensors")
    parser.add_argument("--adapter", type=Path, help="LoRA adapter folder to merge in")
    parser.add_argument("--threads", type=int, help="threads of a forward pass; default: torch's choice")
    parser.add_argument("--max-queue", type=int, default=64, help="drafts that may wait (default: %(default)s)")
    parser.add_argument("--max-wait", type=float, help="seconds that a draft may be expected to wait (default: any)")
    parser.add_argument("--shortlist", choices=KINDS, default="none", help="how long lists of tools are cut down")
    parser.add_argument("--shortlist-keep", type=int, default=12, help="to so many (default: %(default)s)")
    parser.add_argument(
        "--cache-mb", type=int, default=CACHE_BYTES >> 20, help="MiB for shared prompts, 0: none (default: %(default)s)"
    )
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="float32", help="default: %(default)s")
    parser.add_argument("--device", choices=get_args(DeviceName), default="cpu", help="default: %(default)s")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the worker. Returns the exit code: 0 after a wanted end, 1 where the engine ended by itself, 2 without a
    start."""
    parent = os.getppid()  # Before anything takes long: it may be gone by the time the model is loaded.
    arguments = _arguments(argv)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    log = structlog.get_logger("worker")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    try:
        engine = DraftEngine.load(
            arguments.model,
            arguments.adapter,
            arguments.dtype,
            cache_bytes=arguments.cache_mb << 20,
            shortlist=(arguments.shortlist, arguments.shortlist_keep),
            device=arguments.device,
        )
        give_back()
        listening = listening_socket(arguments.socket)
    except (LoadError, OSError) as exc:
        log.error("cannot_start", error=str(exc))
        return 2
    try:
        bounds = Bounds(arguments.max_queue, arguments.max_wait)
        return 0 if asyncio.run(run(engine, listening, bounds, log, parent)) else 1
    finally:
        arguments.socket.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
