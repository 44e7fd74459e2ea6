"""The engine against transformers' `generate` on real requests: `make bench-engine`, minutes on a quiet machine.

Every contender writes as many tokens for the same prompts with the same weights, one after another within each case, so
that whatever else the machine does falls on all alike. What is compared is CPU time of one thread, which other
processes disturb least; ratios are the result, absolute times are of the machine and the day.

What is not the same: `generate` has no grammar and records no signals, which is in its favour; it reads a prompt that
is not in any cache, as `cold` does.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from evaluation.case_sets import case_set, sample
from evaluation.cases import Case
from slm.cache import Chunk, KeyValues
from slm.engine import Engine
from slm.model import DTypeName, Loaded, load
from slm.pattern import render_prompt
from slm.protocol import Done, DraftCommand, Started, Token
from slm.signals import Distribution, Lens, Pass
from slm.weights import DEFAULT_MODEL, default_cache, resolve_model

ADAPTER = Path("slm/adapters/smollm2-135m-toolcall")
RESULTS = Path("evaluation/results")
MAX_TOKENS = 192
SLOTS = 8
SIGNAL_ROUNDS = 20


@dataclass
class Tally:
    """What one contender did, case by case."""

    cpu_s: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    steps: int = 0
    tokens: int = 0
    weakest: list[float] = field(default_factory=list)
    """Least log-probability of each draft."""


def command(case: Case) -> DraftCommand:
    """The case as the gateway would ask for it."""
    return DraftCommand(messages=list(case.messages), tools=list(case.tools), max_tokens=MAX_TOKENS)


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What it gives and the CPU seconds of this thread that it took."""
    began = time.thread_time()
    made = work()
    return made, time.thread_time() - began


def drafted(engine: Engine, asked: DraftCommand, tally: Tally) -> Done:
    """One draft, told to the tally."""
    events, seconds = timed(lambda: list(engine.draft(asked)))
    return _noted(events, seconds, tally)


def _noted(events: Sequence[Any], seconds: float, tally: Tally) -> Done:
    done = events[-1]
    if not isinstance(done, Done) or not isinstance(events[0], Started):
        raise RuntimeError(f"no draft: {done}")
    tally.cpu_s.append(seconds)
    tally.texts.append(done.text)
    tally.steps += done.steps
    tally.tokens += done.tokens
    tally.weakest.append(min((event.logprob for event in events if isinstance(event, Token)), default=0.0))
    return done


def generated(loaded: Loaded, asked: DraftCommand, tokens: int, tally: Tally) -> None:
    """As many tokens by transformers' own greedy `generate`."""
    prompt = torch.tensor([loaded.tokens.prompt(render_prompt(asked.messages, asked.tools, loaded.tokens.frame))])
    with torch.inference_mode():
        _, seconds = timed(
            lambda: loaded.model.generate(
                prompt, attention_mask=torch.ones_like(prompt), do_sample=False, min_new_tokens=tokens,
                max_new_tokens=tokens, pad_token_id=0,
            )
        )  # fmt: skip
    tally.cpu_s.append(seconds)
    tally.tokens += tokens
    tally.steps += tokens


def _signals(rows: Pass, lens: Lens | None) -> None:
    Distribution(rows, lens).signals([0, 1], [5, 6], [None, None])


def signal_shares(engine: Engine) -> dict[str, float]:
    """Time of the signals as shares of a step of two rows behind 300 tokens: all of them, and those of inner states."""
    loaded, forward = engine._loaded, engine._forward
    memory = KeyValues(loaded.shape, 320)
    spent = {"forward": 0.0, "all": 0.0, "plain": 0.0}
    with torch.inference_mode():
        forward([Chunk(memory, [100] * 300, 0)])
        for _ in range(SIGNAL_ROUNDS):
            memory.set_length(300)
            rows, seconds = timed(lambda: forward([Chunk(memory, [100, 200], 2)]))
            spent["forward"] += seconds
            for name, lens in (("all", engine._lens), ("plain", None)):
                spent[name] += timed(partial(_signals, rows, lens))[1]
    return {
        "all": spent["all"] / (spent["forward"] + spent["all"]),
        "inner": (spent["all"] - spent["plain"]) / (spent["forward"] + spent["all"]),
    }


def measure(cases: Sequence[Case], folder: Path, adapter: Path) -> dict[str, Any]:
    """All contenders over all cases."""
    reference = load(folder, adapter)
    full = load(folder, adapter)
    others: tuple[DTypeName, ...] = ("bfloat16", "int8")
    engines = {
        "plain, cold": Engine(full, lookahead=False, cache_bytes=0),
        "cold": Engine(full, cache_bytes=0),
        **{f"cold, {dtype}": Engine(load(folder, adapter, dtype), cache_bytes=0) for dtype in others},
    }
    warm = {"tools in the cache": Engine(full), "tools in the cache, int8": Engine(load(folder, adapter, "int8"))}
    tallies = {name: Tally() for name in ("transformers generate", *engines, *warm)}
    for case in cases:
        asked = command(case)
        for name, engine in engines.items():
            done = drafted(engine, asked, tallies[name])
            if name == "plain, cold":
                generated(reference, asked, max(1, done.tokens), tallies["transformers generate"])
        for name, engine in warm.items():
            drafted(engine, asked, Tally())
            drafted(engine, asked, tallies[name])
    many = Engine(full, slots=SLOTS, cache_bytes=0)
    commands = [command(case) for case in cases]
    results, seconds = timed(lambda: dict(many.draft_many(commands)))
    together = tallies[f"cold, {SLOTS} at once"] = Tally()
    for place in range(len(cases)):
        _noted(results[place], seconds / len(cases), together)
    return {"contenders": tallies, "signals": signal_shares(engines["cold"])}


def table(measured: dict[str, Any], cases: int, adapter: str) -> dict[str, Any]:
    """Figures by contender, ratios to `generate` and agreement with the plain engine in float32."""
    tallies: dict[str, Tally] = measured["contenders"]
    base, plain = tallies["transformers generate"], tallies["plain, cold"]
    rows = {}
    for name, tally in tallies.items():
        pairs = list(zip(tally.cpu_s, base.cpu_s, strict=True))
        rows[name] = {
            "cpu_ratio": sum(tally.cpu_s) / sum(base.cpu_s),
            "median_case_ratio": statistics.median(a / b for a, b in pairs),
            "median_cpu_s": statistics.median(tally.cpu_s),
            "steps_per_token": tally.steps / tally.tokens,
            "same_drafts": sum(a == b for a, b in zip(tally.texts, plain.texts, strict=True)) if tally.texts else None,
            "weakest_logprob_shift": statistics.mean(
                abs(a - b) for a, b in zip(tally.weakest, plain.weakest, strict=True)
            ) if tally.weakest else None,
        }  # fmt: skip
    return {
        "cases": cases,
        "adapter_sha256": adapter,
        "unit": "CPU seconds of one thread, tokenizing and grammar included",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "cpu": platform.processor() or platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "signals_share_of_step": measured["signals"],
        "rows": rows,
    }


def markdown(made: dict[str, Any]) -> str:
    """The table for reading."""
    lines = [
        f"# The engine on {made['cases']} BFCL requests (`make bench-engine`)",
        "",
        f"{made['unit']}; torch {made['versions']['torch']}, transformers {made['versions']['transformers']}, "
        f"{made['capability']}. Ratios below 1 are faster than `generate`, which has no grammar and no signals.",
        "",
        "| contender | CPU ÷ generate | median case | steps ÷ tokens | drafts as in plain float32 "
        "| mean shift of the weakest log-prob |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in made["rows"].items():
        same = "" if row["same_drafts"] is None else f"{row['same_drafts']} of {made['cases']}"
        shift = "" if row["weakest_logprob_shift"] is None else f"{row['weakest_logprob_shift']:.3f}"
        lines.append(
            f"| {name} | {row['cpu_ratio']:.2f} | {row['median_case_ratio']:.2f} | {row['steps_per_token']:.2f} "
            f"| {same} | {shift} |"
        )
    shares = made["signals_share_of_step"]
    lines += [
        "",
        f"All signals take {shares['all']:.1%} of a float32 step, those of inner states {shares['inner']:.1%}.",
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    """Measure and write the results. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.engine", description=__doc__.partition("\n")[0])
    parser.add_argument("--per-category", type=int, default=5, help="BFCL cases a category (default: %(default)s)")
    parser.add_argument("--most", type=int, default=100, help="cases in all (default: %(default)s)")
    parser.add_argument("--adapter", type=Path, default=ADAPTER, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases = list(sample("bfcl", case_set("bfcl"), arguments.per_category))[: arguments.most]
    folder = resolve_model(DEFAULT_MODEL, default_cache()).path
    measured = measure(cases, folder, arguments.adapter)
    made = table(measured, len(cases), load(folder, arguments.adapter).info.adapter_sha256 or "")
    (arguments.out / "engine.json").write_text(json.dumps(made, indent=2) + "\n")
    (arguments.out / "engine.md").write_text(markdown(made))
    print(markdown(made))
    return 0


if __name__ == "__main__":
    sys.exit(main())
