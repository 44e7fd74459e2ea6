"""A worker without a model: speaks `slm.protocol` over a Unix socket, from a script, in this process or in its own."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from slm import protocol
from slm.format.pattern import SpanTracker, parse_plan

INFO = protocol.Info(
    protocol=1,
    model="scripted",
    weights_sha256="0" * 64,
    adapter_sha256=None,
    pattern_version="1",
    architecture="scripted",
    dtype="float32",
    context_tokens=1000,
)

Step = protocol.Event | bytes | float
"""Sent as a line, sent as it is, or waited for in seconds."""


def draft_events(text: str, logprob: float = -0.01) -> Iterator[protocol.Event]:
    """The events of a draft that writes `text`, one token a character, each as sure as it is told."""
    yield protocol.Started(prompt_tokens=7, cached_tokens=0, queue_s=0.0, prefill_s=0.0)
    tracker = SpanTracker()
    for index, character in enumerate(text):
        yield protocol.Token(
            id=index,
            text=character,
            logprob=logprob,
            margin=0.9,
            entropy=0.1,
            feasible_mass=1.0,
            forced=False,
            span=int(tracker.feed(character)),
        )
        if character == "\n" and "\n" not in text[:index]:
            kind, names = parse_plan(text[:index])
            yield protocol.PlanMade(kind=kind, names=list(names))
    yield protocol.Done(text=text, finish="stop", decode_s=0.0, steps=len(text), tokens=len(text))


class FakeWorker:
    """`async with FakeWorker(socket, script)`: every draft plays the script, then the connection is closed."""

    def __init__(self, socket: Path, script: Sequence[Step], *, infos: int = sys.maxsize, later: Step = 3600.0) -> None:
        """So many questions what is loaded are answered by that, further ones by `later`."""
        self._socket, self._script, self._infos, self._later = socket, script, infos, later
        self._serving: list[asyncio.Task[None]] = []
        self.commands: list[protocol.Command] = []
        self.hung_up = asyncio.Event()
        """Set when a client closes the connection before the script is over."""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[FakeWorker]:
        """Serve until the block ends."""
        server = await asyncio.start_unix_server(self._accept, str(self._socket), limit=protocol.MAX_LINE_BYTES)
        try:
            yield self
        finally:
            server.close()
            await asyncio.gather(*self._serving)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving = asyncio.current_task()
        assert serving is not None
        self._serving.append(serving)
        await self._serve(reader, writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        playing = asyncio.create_task(self._play(protocol.command_decoder.decode(await reader.readline()), writer))
        leaving = asyncio.create_task(reader.read())
        await asyncio.wait({playing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not playing.done():
            self.hung_up.set()
            writer.transport.abort()
        for task in (playing, leaving):
            task.cancel()
        await asyncio.gather(playing, leaving, return_exceptions=True)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async def _play(self, command: protocol.Command, writer: asyncio.StreamWriter) -> None:
        self.commands.append(command)
        script = self._script
        if isinstance(command, protocol.InfoCommand):
            self._infos -= 1
            script = [INFO] if self._infos >= 0 else [self._later]
        for step in script:
            if isinstance(step, float):
                await asyncio.sleep(step)
            else:
                writer.write(step if isinstance(step, bytes) else protocol.encode(step) + b"\n")
                await writer.drain()


@dataclass(frozen=True, slots=True)
class FakeCommand:
    """Starts this module as a supervised worker, in the place of `router.small.supervisor.WorkerCommand`."""

    socket: Path
    chatter: int = 0
    """Bytes written to stderr in one line before anything else."""
    infos: int = 1_000_000
    """So many questions what is loaded are answered; then it hangs."""
    stalls: bool = False
    """Whether it then says of its engine that it hangs, instead of hanging itself."""

    def arguments(self) -> Sequence[str]:
        """The command line."""
        options = ["--socket", str(self.socket), "--chatter", str(self.chatter), "--infos", str(self.infos)]
        options += ["--stalls"] if self.stalls else []
        return [sys.executable, "-m", "tests.router.fake_worker", *options]


async def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--chatter", type=int, required=True)
    parser.add_argument("--infos", type=int, required=True)
    parser.add_argument("--stalls", action="store_true")
    options = parser.parse_args()
    later = protocol.DraftFailed(code="internal", message="the engine hangs") if options.stalls else 3600.0
    sys.stderr.write("x" * options.chatter + "\n")
    sys.stderr.flush()
    options.socket.unlink(missing_ok=True)
    script = list(draft_events("Thought: none\nAction: none"))
    async with FakeWorker(options.socket, script, infos=options.infos, later=later).running():
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
