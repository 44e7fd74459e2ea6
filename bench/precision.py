"""Measures the effect of a smaller precision (`make engine-precision`): the same drafts in float32, bfloat16 and int8.

By precision: how many drafts are token for token those of float32; how many pass BFCL's rules; and over the tokens of
float32's own drafts the Kullback–Leibler divergence from float32's distribution (nats), how often the most probable
token is the same, and how far a written token's log-probability moves.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import msgspec
import torch

from bench.requests import request_of
from bench.run import Clock, base_folder, options, stamp, write
from evaluation.cases.answers import Answer, Call
from evaluation.cases.case import Case
from evaluation.cases.scoring import score
from evaluation.cases.sets import case_set, sample
from slm.engine.engine import DraftEngine
from slm.engine.kv_cache import KVCache, TokenChunk
from slm.engine.model import DTypeName, load
from slm.format.pattern import PatternError, parse_draft, render_prompt
from slm.protocol import Done, DraftCommand, Token

MINUTES = 20.0
SEED = 4
BLOCK = 4
"""Cases that are drafted together, then held against one another."""


@dataclass(frozen=True, slots=True)
class Written:
    """One draft."""

    prompt: list[int]
    ids: list[int]
    text: str


def written(engine: DraftEngine, commands: Sequence[DraftCommand]) -> list[Written]:
    """All drafts, eight at once."""
    tokens = engine._loaded.tokens
    made = dict(engine.draft_many(commands))
    found = []
    for place, command in enumerate(commands):
        events = made[place]
        if not isinstance(events[-1], Done):
            raise RuntimeError(f"no draft: {events[-1]}")
        prompt = tokens.prompt(render_prompt(command.messages, command.tools, tokens.frame))
        found.append(Written(prompt, [e.id for e in events if isinstance(e, Token)], events[-1].text))
    return found


def logs(engine: DraftEngine, draft: Written) -> torch.Tensor:
    """Log-probabilities before each token of a draft: shape (tokens, vocabulary)."""
    kv = KVCache(engine._loaded.shape, len(draft.prompt) + len(draft.ids))
    ids = (draft.prompt + draft.ids)[:-1]
    with torch.inference_mode():
        return engine._forward([TokenChunk(kv, ids, len(draft.ids))]).logits.float().log_softmax(-1)


def passes(case: Case, text: str) -> bool:
    """True if BFCL's rules pass the draft."""
    try:
        parsed = parse_draft(text)
    except PatternError:
        return False
    calls = tuple(Call.from_text(call.name, call.arguments) for call in parsed.calls)
    return score(case, Answer(calls=calls)).passed


def compared(
    folder: Path,
    adapter: Path,
    cases: Sequence[Case],
    commands: Sequence[DraftCommand],
    dtypes: Sequence[DTypeName],
    clock: Clock,
) -> tuple[int, dict[str, Any]]:
    """Return the number of cases drafted in every precision, and figures by precision, `float32` included; the time
    ends the list of cases."""
    engines = {dtype: DraftEngine(load(folder, adapter, dtype)) for dtype in dtypes}
    full = engines["float32"]
    rows: dict[str, PrecisionTally] = {dtype: PrecisionTally() for dtype in engines}
    done = 0
    for start in range(0, len(cases), BLOCK):
        if start and clock.past():
            break
        part, asked = cases[start : start + BLOCK], commands[start : start + BLOCK]
        expected = written(full, asked)
        references = [logs(full, draft) for draft in expected]
        for dtype, engine in engines.items():
            drafts = expected if engine is full else written(engine, asked)
            rows[dtype].same_drafts += sum(a.ids == b.ids for a, b in zip(drafts, expected, strict=True))
            rows[dtype].passed += sum(passes(case, draft.text) for case, draft in zip(part, drafts, strict=True))
            if engine is not full:
                for draft, reference in zip(expected, references, strict=True):
                    rows[dtype].add(draft, reference, logs(engine, draft))
        done += len(part)
        clock.report(f"{done} of {len(cases)} cases")
    return done, {dtype: tally.to_dict() for dtype, tally in rows.items()}


@dataclass
class PrecisionTally:
    """Figures of one precision."""

    same_drafts: int = 0
    passed: int = 0
    tokens: int = 0
    _divergence: float = 0.0
    _same: int = 0
    _moved: float = 0.0

    def add(self, draft: Written, reference: torch.Tensor, got: torch.Tensor) -> None:
        """Hold log-probabilities over a draft of float32 against float32's own."""
        place = torch.tensor(draft.ids).unsqueeze(1)
        self._divergence += float((reference.exp() * (reference - got)).sum())
        self._same += int((reference.argmax(-1) == got.argmax(-1)).sum())
        self._moved += float((reference - got).gather(1, place).abs().sum())
        self.tokens += len(draft.ids)

    def to_dict(self) -> dict[str, float]:
        """Return the figures for the result file; divergence in nats."""
        made: dict[str, float] = {"same_drafts": self.same_drafts, "passed": self.passed}
        if self.tokens:
            made |= {
                "tokens": self.tokens,
                "divergence_nats": self._divergence / self.tokens,
                "same_best_token": self._same / self.tokens,
                "logprob_moved": self._moved / self.tokens,
            }
        return made


def markdown(made: dict[str, Any]) -> str:
    """The table for reading."""
    lines = [
        f"# What a smaller precision changes, on {made['cases']} BFCL cases (`make engine-precision`)",
        "",
        "Against float32: drafts that are the same token for token, cases that BFCL's rules pass, and over float32's "
        "own drafts the Kullback–Leibler divergence (nats a token), the share of tokens whose most probable one is "
        "the same, and how far a written token's log-probability moves (nats).",
        "",
        "| precision | same drafts | passed | tokens | divergence | same best token | log-probability moved |",
        "|---|---|---|---|---|---|---|",
    ]
    for dtype, row in made["rows"].items():
        shift = [
            f"{row[key]:.4f}" if key in row else "" for key in ("divergence_nats", "same_best_token", "logprob_moved")
        ]
        lines.append(
            f"| {dtype} | {row['same_drafts']} | {row['passed']} | {row.get('tokens', '')} | {' | '.join(shift)} |"
        )
    machine = made["machine"]
    return "\n".join(
        [
            *lines,
            "",
            f"`{made['command']}` at commit {made['commit']}; cases {made['data_sha256'][:12]}, weights "
            f"{made['weights_sha256'][:12]}, adapter {str(made['adapter_sha256'])[:12]}; {machine['cpu']}, "
            f"{machine['capability']}, torch {made['versions']['torch']}.",
            "",
        ]
    )


def main() -> int:
    """Compare and write the result. Returns the exit code."""
    parser = options("bench.precision", __doc__, minutes=MINUTES)
    parser.add_argument("--per-category", type=int, default=12, help="BFCL cases a category (default: %(default)s)")
    parser.add_argument(
        "--dtype", action="append", choices=[name for name in get_args(DTypeName) if name != "float32"],
        help="one precision beside float32; repeat for more (default: all; bfloat16 is slow without units for it)",
    )  # fmt: skip
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    folder = base_folder()
    cases = [case for case in sample("bfcl", case_set("bfcl"), arguments.per_category) if case.tools]
    random.Random(SEED).shuffle(cases)  # So that a run that ends early has cases of all categories.
    commands = [msgspec.structs.replace(request_of(case).command, tool_choice="auto") for case in cases]
    info = load(folder, arguments.adapter).info
    clock = Clock(arguments.minutes)
    dtypes = ["float32", *arguments.dtype] if arguments.dtype else get_args(DTypeName)
    done, rows = compared(folder, arguments.adapter, cases, commands, dtypes, clock)
    made = {**stamp(info, commands), "asked_cases": len(cases), "cases": done, "minutes": clock.minutes, "rows": rows}
    write(arguments.out, "precision", made, markdown(made))
    print(markdown(made))
    return 0


if __name__ == "__main__":
    sys.exit(main())
