"""The engine against its peers: `make bench-engine`. One run, one machine, the same weights, the same real tool calls.

Contenders: our worker in several precisions, llama.cpp's server (Q8_0, grammar, prompt cache, 8 slots), transformers'
`generate` one request after another. All use the same number of threads. Each is timed at the client, from the request
to its last byte; by turns with the others, request by request or in short blocks, so that whatever else the machine
does falls on all alike. CPU seconds are those of the contender's process.

What is not the same, all of it in the peers' favour: llama.cpp gets its prompt as token ids, and its grammar does not
bind the calls to the plan; neither peer gives signals; `generate` has no grammar and is told how many tokens to write.
Figures of a run on a shared machine are of the machine and the day; ratios within the run are the result.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from bench import llamacpp
from bench.engine_table import markdown, table
from bench.gguf_file import write_q8_0
from bench.process import cpu_s, peak_bytes
from bench.requests import Request, requests
from bench.worker import Worker, working
from policies.policy import Draft, DraftCall, Outcome, Tool
from policies.policy import Request as JudgedRequest
from policies.validity import check
from slm.gbnf import draft_grammar
from slm.model import Loaded, load
from slm.pattern import Parsed, PatternError, parse_draft, render_prompt
from slm.protocol import DraftCommand
from slm.weights import DEFAULT_MODEL, default_cache, known_model, resolve_model

ADAPTER = Path("slm/adapters/smollm2-135m-toolcall")
RESULTS = Path("evaluation/results")
ENVIRONMENTS = Path("~/.cache/smallcall/bench")
CLIENTS = 8
BLOCK = 16
"""Requests that a contender answers before it is another's turn, where eight clients ask at once."""
GENERATED_EVERY = 4
"""`generate` takes seconds a request: it gets every fourth one."""
CACHE_MB = 256


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of one contender."""

    text: str
    tokens: int
    steps: int
    """Forward passes behind the prompt's."""
    cached_tokens: int
    decode_s: float
    seconds: float = 0.0
    cpu_s: float = 0.0


@dataclass
class Contender:
    """How one is asked: `(request, warm)`; `pid` is the process that works."""

    name: str
    pid: int
    ask: Callable[[DraftCommand, bool], Answer]


@dataclass
class Tally:
    """What one contender did in one discipline; lists go by request."""

    answers: dict[str, Answer] = field(default_factory=dict)
    wall_s: float = 0.0
    cpu_s: float = 0.0
    peak_bytes: int = 0


# ── contenders ───────────────────────────────────────────────────────────────────────────────────────────────────────


def asked_of_worker(worker: Worker) -> Callable[[DraftCommand, bool], Answer]:
    """Our worker: whether its cache is used was decided when it was started."""

    def ask(command: DraftCommand, warm: bool) -> Answer:
        drafted = worker.draft(command)
        done = drafted.done
        return Answer(done.text, done.tokens, done.steps, drafted.started.cached_tokens, done.decode_s)

    return ask


def asked_of_llamacpp(server: llamacpp.Server, loaded: Loaded) -> Callable[[DraftCommand, bool], Answer]:
    """llama.cpp's server. Prompts and grammars are made ready beforehand, once for each request."""
    ready: dict[int, tuple[list[int], str]] = {}

    def ask(command: DraftCommand, warm: bool) -> Answer:
        if id(command) not in ready:
            ready[id(command)] = (prompt_of(loaded, command), draft_grammar(command.tools, command.tool_choice))
        prompt, grammar = ready[id(command)]
        made = server.complete(prompt, grammar, max_tokens=command.max_tokens, cache=warm)
        return Answer(made.text, made.tokens, made.tokens, made.cached_tokens, 0.0)

    return ask


def prompt_of(loaded: Loaded, command: DraftCommand) -> list[int]:
    """The prompt's tokens, as our engine reads them."""
    return loaded.tokens.prompt(render_prompt(command.messages, command.tools, loaded.tokens.frame))


def generated(loaded: Loaded, command: DraftCommand, tokens: int) -> Answer:
    """As many tokens by transformers' own greedy `generate`, in this process."""
    prompt = torch.tensor([prompt_of(loaded, command)])
    began, cpu = time.perf_counter(), time.thread_time()
    with torch.inference_mode():
        loaded.model.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, min_new_tokens=tokens,
            max_new_tokens=tokens, pad_token_id=0,
        )  # fmt: skip
    return Answer("", tokens, tokens, 0, 0.0, time.perf_counter() - began, time.thread_time() - cpu)


# ── disciplines ──────────────────────────────────────────────────────────────────────────────────────────────────────


def one_client(contenders: Sequence[Contender], asked: Sequence[Request], warm: bool) -> dict[str, Tally]:
    """One request at a time; where `warm`, a request with the same tools and another question went before."""
    tallies = {contender.name: Tally() for contender in contenders}
    for turn, request in enumerate(asked):
        for contender in _rotated(contenders, turn):
            if warm:
                contender.ask(request.warming, True)
            cpu, began = cpu_s(contender.pid), time.perf_counter()
            answer = contender.ask(request.command, warm)
            seconds, spent = time.perf_counter() - began, cpu_s(contender.pid) - cpu
            tally = tallies[contender.name]
            tally.answers[request.id] = _timed(answer, seconds, spent)
            tally.wall_s += seconds
            tally.cpu_s += spent
    return tallies


def eight_clients(contenders: Sequence[Contender], asked: Sequence[Request]) -> dict[str, Tally]:
    """Eight clients, each asking again as soon as it is answered; in blocks, by turns."""
    tallies = {contender.name: Tally() for contender in contenders}
    with ThreadPoolExecutor(CLIENTS) as pool:
        for turn, start in enumerate(range(0, len(asked), BLOCK)):
            block = asked[start : start + BLOCK]
            for contender in _rotated(contenders, turn):
                cpu, began = cpu_s(contender.pid), time.perf_counter()
                answers = list(pool.map(lambda request, of=contender: of.ask(request.command, True), block))
                tally = tallies[contender.name]
                tally.wall_s += time.perf_counter() - began
                tally.cpu_s += cpu_s(contender.pid) - cpu
                tally.answers.update((request.id, answer) for request, answer in zip(block, answers, strict=True))
    for contender in contenders:
        tallies[contender.name].peak_bytes = peak_bytes(contender.pid)
    return tallies


def _rotated(contenders: Sequence[Contender], turn: int) -> list[Contender]:
    """Another one begins each turn."""
    first = turn % len(contenders)
    return [*contenders[first:], *contenders[:first]]


def _timed(answer: Answer, seconds: float, spent: float) -> Answer:
    return Answer(answer.text, answer.tokens, answer.steps, answer.cached_tokens, answer.decode_s, seconds, spent)


# ── the run ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Setting:
    """What a run works with."""

    folder: Path
    adapter: Path
    loaded: Loaded
    dtypes: Sequence[str]
    threads: int
    peer: llamacpp.Peer | None
    scratch: Path


@contextmanager
def contenders_of(setting: Setting, cache_mb: int) -> Iterator[list[Contender]]:
    """Fresh processes of all contenders."""
    with ExitStack() as stack:
        made = []
        for dtype in setting.dtypes:
            worker = stack.enter_context(
                working(
                    setting.scratch, setting.folder, setting.adapter, dtype=dtype, threads=setting.threads,
                    cache_mb=cache_mb,
                )
            )  # fmt: skip
            made.append(Contender(f"smallcall {dtype}", worker.pid, asked_of_worker(worker)))
        if setting.peer:
            server = stack.enter_context(llamacpp.serving(setting.peer, setting.scratch / "llamacpp.log"))
            made.append(Contender("llama.cpp Q8_0", server.pid, asked_of_llamacpp(server, setting.loaded)))
        yield made


def measured(setting: Setting, asked: Sequence[Request]) -> dict[str, dict[str, Tally]]:
    """All disciplines; processes are fresh for each, so that no cache knows a request from before."""
    disciplines: dict[str, dict[str, Tally]] = {}
    with contenders_of(setting, CACHE_MB) as contenders:
        disciplines["eight clients"] = eight_clients(contenders, asked)
    with contenders_of(setting, CACHE_MB) as contenders:
        disciplines["warm"] = one_client(contenders, asked, warm=True)
    with contenders_of(setting, 0) as contenders:
        disciplines["cold"] = one_client(contenders, asked, warm=False)
    lengths = disciplines["cold"][f"smallcall {setting.dtypes[0]}"].answers
    reference = Tally()
    for request in asked[::GENERATED_EVERY]:
        answer = generated(setting.loaded, request.command, max(1, lengths[request.id].tokens))
        reference.answers[request.id] = answer
        reference.wall_s += answer.seconds
        reference.cpu_s += answer.cpu_s
    disciplines["cold"]["transformers generate"] = reference
    return disciplines


def valid_ids(answers: dict[str, Answer], asked: Sequence[Request]) -> set[str]:
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
    """Bytes a second that one thread reads at best: the sum of an array far larger than any cache."""
    array = torch.ones(bytes_read // 4)
    best = 0.0
    for _ in range(rounds):
        began = time.thread_time()
        array.sum()
        best = max(best, bytes_read / (time.thread_time() - began))
    return best


def main() -> int:
    """Measure and write the results. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.engine", description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=100, help="default: %(default)s")
    parser.add_argument("--dtypes", default="int8,bfloat16,float32", help="of our worker (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of every contender (default: %(default)s)")
    parser.add_argument(
        "--llamacpp", choices=["server", "node", "none"], default="server",
        help="its own server, built once; node-llama-cpp's binaries; or without (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--environments", type=Path, default=ENVIRONMENTS, help="peers (default: %(default)s)")
    parser.add_argument("--adapter", type=Path, default=ADAPTER, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    environments: Path = arguments.environments.expanduser()
    environments.mkdir(parents=True, exist_ok=True)
    folder = resolve_model(DEFAULT_MODEL, default_cache()).path
    loaded = load(folder, arguments.adapter)
    with tempfile.TemporaryDirectory(prefix="smallcall-bench-") as scratch:
        gguf = Path(scratch) / "model-q8_0.gguf"
        write_q8_0(loaded.model, _base_file(), gguf)
        peer = None
        if arguments.llamacpp != "none":
            start = llamacpp.own_server if arguments.llamacpp == "server" else llamacpp.node_server
            peer = start(environments / f"llamacpp-{arguments.llamacpp}", gguf, arguments.threads)
        dtypes = arguments.dtypes.split(",")
        setting = Setting(folder, arguments.adapter, loaded, dtypes, arguments.threads, peer, Path(scratch))
        asked = requests(arguments.requests)
        disciplines = measured(setting, asked)
        valid = {
            discipline: {name: valid_ids(tally.answers, asked) for name, tally in tallies.items()}
            for discipline, tallies in disciplines.items()
        }
        made = table(
            disciplines, valid, loaded, threads=arguments.threads, bandwidth=memory_bandwidth(),
            gguf_bytes=gguf.stat().st_size, cache_mb=CACHE_MB, peer=peer.package if peer else None,
        )  # fmt: skip
    (arguments.out / "engine.json").write_text(json.dumps(made, indent=2) + "\n")
    (arguments.out / "engine.md").write_text(markdown(made))
    print(markdown(made))
    return 0


def _base_file() -> Path:
    model = known_model(DEFAULT_MODEL)
    return default_cache() / "downloads" / model.name / model.file.name


if __name__ == "__main__":
    sys.exit(main())
