"""The last word of a training run: how many drafts of validation rows are right, into the run's `scores.json`."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from evaluation.cases import Case, load_cases
from evaluation.intervals import wilson
from evaluation.jsonl import RowError
from router.ablations import drafted_rows
from router.settings import Small
from slm.recipe import Recipe
from slm.splits import held_out


def validation_cases(files: Sequence[Path], share: float, rows: int) -> list[Case]:
    """At most so many rows of conversations that training kept out, one a conversation, drawn by a hash.

    Files of OpenAI conversations hold no gold to score by and give none.
    """
    kept: list[Case] = []
    for file in files:
        with contextlib.suppress(RowError):
            kept += [case for case in load_cases(file) if case.split == "train" and held_out(case.conversation, share)]
    drawn: dict[str, Case] = {}
    for case in sorted(kept, key=lambda one: hashlib.sha256(f"score\0{one.id}".encode()).digest()):
        if case.scorable:
            drawn.setdefault(case.conversation, case)
    return list(drawn.values())[:rows]


def score_run(
    recipe: Recipe,
    base: Path,
    files: Sequence[Path],
    trained: Path,
    small: Small,
    rows: int,
    tell: Callable[[int, int], None],
) -> tuple[int, int]:
    """Draft validation rows with what was trained, and add `pass_rate` to `scores.json` beside it.

    Returns:
        Passed, drafted; nothing is written where there is no row to draft.
    """
    from slm.engine import Engine

    cases = validation_cases(files, recipe.data.validation_share, rows)
    if not cases:
        return 0, 0
    engine = Engine.load(base, trained) if recipe.lora is not None else Engine.load(trained)
    passed = sum(row.passed is True for row in drafted_rows(engine, small, cases, tell))
    low, high = wilson(passed, len(cases))
    path = trained.parent / "scores.json"
    scores = json.loads(path.read_text(encoding="utf-8"))
    scores["pass_rate"] = {"passed": passed, "n": len(cases), "low": low, "high": high}
    path.write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
    return passed, len(cases)
