"""What was answered to each case, small enough to be committed: a later run can be held against it, case by case.

One gzipped JSON object: how the small model was run, and for each arm and case the verdict's word and the beginning of
a SHA-256 over the answer. Two runs that agree here gave the same answers to the letter.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from evaluation.cases import canonical_json
from evaluation.trace_table import TraceRow

_DIGEST_CHARS = 10


class Conditions(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer depends on, beside the case."""

    weights_sha256: str
    adapter_sha256: str | None
    pattern_version: str
    dtype: str
    grammar: bool
    max_tokens: int
    shortlist: str
    """Its kind, above and keep; `none` where the model sees all tools."""
    chunk: int
    """Cases drafted together; they are taken in the set's order."""


class ArmVerdicts(msgspec.Struct, frozen=True, kw_only=True):
    """One arm on one set."""

    conditions: Conditions
    verdicts: dict[str, str]
    """Case id → `word digest`."""


class Verdicts(msgspec.Struct, frozen=True, kw_only=True):
    """One set."""

    set: str
    per_group: int | None
    """Cases of each group, as `evaluation.case_sets.sample` draws them; None for all."""
    data_sha256: str
    threads: int
    """Of the process that answered: sums are added up in another order by another number of them."""
    commit: str
    arms: dict[str, ArmVerdicts]


def verdict_of(row: TraceRow) -> str:
    """The word of the verdict and the answer's digest."""
    answer = canonical_json([row.error, row.outcome, row.calls, row.text, row.small_text])
    word = "passed" if row.passed else row.error or row.fail_reason or "passed"
    return f"{word} {hashlib.sha256(answer).hexdigest()[:_DIGEST_CHARS]}"


def write_verdicts(path: Path, verdicts: Verdicts) -> None:
    """Equal verdicts give equal bytes."""
    with path.open("wb") as raw, gzip.GzipFile("", "wb", mtime=0, fileobj=raw) as file:
        file.write(msgspec.json.encode(verdicts))


def read_verdicts(path: Path) -> Verdicts:
    """Raises OSError where there are none, msgspec.MsgspecError where the file holds something else."""
    with gzip.open(path, "rb") as file:
        return msgspec.json.decode(file.read(), type=Verdicts)


def differing(arm: ArmVerdicts, rows: Sequence[TraceRow]) -> list[str]:
    """What differs between committed verdicts and new answers, one line a case; cases unknown to the file among it."""
    told = []
    for row in rows:
        before, now = arm.verdicts.get(row.case_id, "not in the file"), verdict_of(row)
        if before != now:
            told.append(f"{row.case_id}: {before} then, {now} now")
    return told
