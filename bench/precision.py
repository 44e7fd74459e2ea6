"""What a smaller precision changes: `make engine-precision`. The same drafts in float32, bfloat16 and int8.

By precision: how many drafts are token for token those of float32; how many pass BFCL's rules; and over the tokens of
float32's own drafts the Kullback–Leibler divergence from float32's distribution (nats), how often the most probable
token is the same, and how far a written token's log-probability moves.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import msgspec
import torch

from bench.requests import request_of
from evaluation.answers import Answer, Call
from evaluation.case_sets import case_set, sample
from evaluation.cases import Case
from evaluation.scoring import score
from slm.cache import Chunk, KeyValues
from slm.engine import Engine
from slm.model import DTypeName, load
from slm.pattern import PatternError, parse_draft, render_prompt
from slm.protocol import Done, DraftCommand, Token
from slm.weights import DEFAULT_MODEL, default_cache, resolve_model

ADAPTER = Path("slm/adapters/smollm2-135m-toolcall")
RESULTS = Path("evaluation/results")


@dataclass(frozen=True, slots=True)
class Written:
    """One draft."""

    prompt: list[int]
    ids: list[int]
    text: str


def written(engine: Engine, commands: Sequence[DraftCommand]) -> list[Written]:
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


def logs(engine: Engine, draft: Written) -> torch.Tensor:
    """Log-probabilities before each token of a draft: shape (tokens, vocabulary)."""
    memory = KeyValues(engine._loaded.shape, len(draft.prompt) + len(draft.ids))
    ids = (draft.prompt + draft.ids)[:-1]
    with torch.inference_mode():
        return engine._forward([Chunk(memory, ids, len(draft.ids))]).logits.float().log_softmax(-1)


def passes(case: Case, text: str) -> bool:
    """Whether BFCL's rules pass the draft."""
    try:
        parsed = parse_draft(text)
    except PatternError:
        return False
    calls = tuple(Call.from_text(call.name, call.arguments) for call in parsed.calls)
    return score(case, Answer(calls=calls)).passed


def compared(folder: Path, adapter: Path, cases: Sequence[Case]) -> dict[str, Any]:
    """Figures by precision."""
    commands = [msgspec.structs.replace(request_of(case).command, tool_choice="auto") for case in cases]
    full = Engine(load(folder, adapter, "float32"))
    expected = written(full, commands)
    rows: dict[str, Any] = {}
    for dtype in get_args(DTypeName):
        engine = full if dtype == "float32" else Engine(load(folder, adapter, dtype))
        drafts = expected if dtype == "float32" else written(engine, commands)
        row: dict[str, Any] = {
            "same_drafts": sum(a.ids == b.ids for a, b in zip(drafts, expected, strict=True)),
            "passed": sum(passes(case, draft.text) for case, draft in zip(cases, drafts, strict=True)),
        }
        if dtype != "float32":
            row |= _shift(full, engine, expected)
        rows[dtype] = row
        print(dtype, row, flush=True)
    return rows


def _shift(full: Engine, engine: Engine, drafts: Sequence[Written]) -> dict[str, float]:
    divergence, same, moved, count = 0.0, 0, 0.0, 0
    for draft in drafts:
        reference, got = logs(full, draft), logs(engine, draft)
        place = torch.tensor(draft.ids).unsqueeze(1)
        divergence += float((reference.exp() * (reference - got)).sum())
        same += int((reference.argmax(-1) == got.argmax(-1)).sum())
        moved += float((reference - got).gather(1, place).abs().sum())
        count += len(draft.ids)
    return {
        "tokens": count,
        "divergence_nats": divergence / count,
        "same_best_token": same / count,
        "logprob_moved": moved / count,
    }


def main() -> int:
    """Compare and write the result. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.precision", description=__doc__.partition("\n")[0])
    parser.add_argument("--per-category", type=int, default=12, help="BFCL cases a category (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--adapter", type=Path, default=ADAPTER, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    folder = resolve_model(DEFAULT_MODEL, default_cache()).path
    cases = [case for case in sample("bfcl", case_set("bfcl"), arguments.per_category) if case.tools]
    info = load(folder, arguments.adapter).info
    made = {
        "cases": len(cases),
        "command": f"python -m bench.precision --per-category {arguments.per_category}",
        "weights_sha256": info.weights_sha256,
        "adapter_sha256": info.adapter_sha256,
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "rows": compared(folder, arguments.adapter, cases),
    }
    (arguments.out / "engine_precision.json").write_text(json.dumps(made, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
