"""The contenders of the engine's bench: our worker in several precisions, llama.cpp, transformers' `generate`; how each
is asked.

A contender that does not start is left out and reported; the others go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from bench import llamacpp
from bench.requests import BenchRequest
from bench.worker import Worker, working
from slm.engine.model import LoadedModel
from slm.format.gbnf import draft_grammar
from slm.format.pattern import render_prompt
from slm.protocol import DraftCommand

PEER, REFERENCE = "llama.cpp Q8_0", "transformers generate"
FAILURES = (OSError, KeyError, ValueError, RuntimeError)
"""Exceptions of a contender that does not start or does not answer."""


@dataclass(frozen=True, slots=True)
class BenchAnswer:
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
class EngineContender:
    """One contender: `ask` is called with `(request, warm)`; `pid` is the process that works."""

    name: str
    pid: int
    ask: Callable[[DraftCommand, bool], BenchAnswer]


@dataclass
class Setting:
    """The shared inputs of a run."""

    folder: Path
    adapter: Path
    loaded: LoadedModel
    dtypes: Sequence[str]
    threads: int
    peer: llamacpp.LlamaCppPeer | None
    scratch: Path
    asked: Sequence[BenchRequest]


@contextmanager
def contenders_of(
    setting: Setting, cache_mb: int, failed: Callable[[str, Exception], None]
) -> Iterator[list[EngineContender]]:
    """Fresh processes of all contenders that start."""
    with ExitStack() as stack:
        made = []
        for dtype in setting.dtypes:
            name = f"smallcall {dtype}"
            try:
                worker = stack.enter_context(
                    working(
                        setting.scratch, setting.folder, setting.adapter, dtype=dtype, threads=setting.threads,
                        cache_mb=cache_mb,
                    )
                )  # fmt: skip
            except FAILURES as error:
                failed(name, error)
            else:
                made.append(EngineContender(name, worker.pid, _asked_of_worker(worker)))
        if setting.peer:
            try:
                server = stack.enter_context(llamacpp.serving(setting.peer, setting.scratch / "llamacpp.log"))
            except FAILURES as error:
                failed(PEER, error)
            else:
                made.append(EngineContender(PEER, server.pid, _asked_of_llamacpp(server, setting)))
        yield made


def _asked_of_worker(worker: Worker) -> Callable[[DraftCommand, bool], BenchAnswer]:
    """Our worker: whether its cache is used was decided when it was started."""

    def ask(command: DraftCommand, warm: bool) -> BenchAnswer:
        drafted = worker.draft(command)
        done = drafted.done
        return BenchAnswer(done.text, done.tokens, done.steps, drafted.started.cached_tokens, done.decode_s)

    return ask


def _asked_of_llamacpp(
    server: llamacpp.LlamaCppServer, setting: Setting
) -> Callable[[DraftCommand, bool], BenchAnswer]:
    """llama.cpp's server. Prompts and grammars are made ready beforehand, outside of any measurement."""
    commands = [command for request in setting.asked for command in (request.command, request.warming)]
    ready = {
        id(command): (prompt_of(setting.loaded, command), draft_grammar(command.tools, command.tool_choice))
        for command in commands
    }

    def ask(command: DraftCommand, warm: bool) -> BenchAnswer:
        prompt, grammar = ready[id(command)]
        made = server.complete(prompt, grammar, max_tokens=command.max_tokens, cache=warm)
        return BenchAnswer(made.text, made.tokens, made.tokens, made.cached_tokens, 0.0)

    return ask


def prompt_of(loaded: LoadedModel, command: DraftCommand) -> list[int]:
    """The prompt's tokens, as our engine reads them."""
    return loaded.tokens.prompt(render_prompt(command.messages, command.tools, loaded.tokens.frame))


def generated(loaded: LoadedModel, command: DraftCommand, tokens: int) -> BenchAnswer:
    """Generate as many tokens by transformers' own greedy `generate`, in this process."""
    prompt = torch.tensor([prompt_of(loaded, command)])
    began, cpu = time.perf_counter(), time.process_time()
    with torch.inference_mode():
        loaded.model.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, min_new_tokens=tokens,
            max_new_tokens=tokens, pad_token_id=0,
        )  # fmt: skip
    return BenchAnswer("", tokens, tokens, 0, 0.0, time.perf_counter() - began, time.process_time() - cpu)
