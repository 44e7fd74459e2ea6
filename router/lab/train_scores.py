"""The last word of a training run: how many drafts of validation rows are right, into the run's `scores.json`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluation.cases.case import Case
from evaluation.cases.jsonl import RowError, read_rows
from evaluation.intervals import wilson
from router.settings import Small
from slm.dataset.splits import held_out
from slm.training.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Drawn:
    """Rows to score by."""

    cases: tuple[Case, ...]
    rows: int
    """Rows of the files of which they are."""
    goldless: int
    """Rows that hold no gold to score by: OpenAI conversations, and whatever is no row of the project's format."""

    def __str__(self) -> str:
        if self.cases:
            return f"{len(self.cases)} validation rows"
        return (
            f"no validation row to score: {self.goldless:,} of {self.rows:,} rows hold no gold to score by, "
            "and no other is of a conversation that training kept out"
        )


def validation_cases(files: Sequence[Path], share: float, rows: int) -> Drawn:
    """At most so many rows of conversations that training kept out, one a conversation, drawn by a hash.

    Raises:
        RowError: a line is too long, or an archive broken.
    """
    wrong: list[RowError] = []
    read = [case for file in files for _, case in read_rows(file, Case, passed_over=wrong.append)]
    scorable = [case for case in read if case.scorable]
    kept = [case for case in scorable if case.split == "train" and held_out(case.conversation, share)]
    drawn: dict[str, Case] = {}
    for case in sorted(kept, key=lambda one: hashlib.sha256(f"score\0{one.id}".encode()).digest()):
        drawn.setdefault(case.conversation, case)
    return Drawn(tuple(drawn.values())[:rows], len(read) + len(wrong), len(wrong) + len(read) - len(scorable))


def score_run(
    recipe: Recipe,
    base: Path,
    cases: Sequence[Case],
    trained: Path,
    small: Small,
    on_progress: Callable[[int, int], None],
) -> int:
    """Draft validation rows, one or more, with what was trained, and add `pass_rate` to `scores.json` beside it.

    Returns:
        How many passed.
    """
    from router.lab.batch import drafted_rows
    from slm.engine.engine import DraftEngine

    engine = DraftEngine.load(base, trained) if recipe.lora is not None else DraftEngine.load(trained)
    passed = sum(row.passed is True for row in drafted_rows(engine, small, cases, on_progress))
    low, high = wilson(passed, len(cases))
    path = trained.parent / "scores.json"
    scores = json.loads(path.read_text(encoding="utf-8"))
    scores["pass_rate"] = {"passed": passed, "n": len(cases), "low": low, "high": high}
    path.write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
    return passed
