"""Sixty real requests with GPT-4o's recorded answers, small enough to travel with the package.

Twelve of each BFCL category that has recorded answers, drawn by hash, so that anyone can draw them again from the study
data: `python -m evaluation.demo`. The rows are those of BFCL (Apache-2.0); see `evaluation/data/README.md`.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path

import msgspec

from evaluation.cases.case import Case
from evaluation.cases.jsonl import read_rows
from evaluation.cases.study_data import RecordedAnswer, StudyData

MODEL = "gpt-4o-2024-08-06-FC"
CATEGORIES = ("simple_python", "multiple", "parallel", "parallel_multiple", "irrelevance")
PER_CATEGORY = 12
FILE = "bfcl60.jsonl.gz"

_SEED = "smallcall demo 1"


class DemoRow(msgspec.Struct, frozen=True):
    """One request and what the large model answered to it."""

    case: Case
    recorded: RecordedAnswer


def load_demo() -> list[DemoRow]:
    """The rows that came with the package, categories mixed."""
    with resources.as_file(resources.files("evaluation.demo") / FILE) as path:
        return [row for _, row in read_rows(path, DemoRow)]


def choose(cases: Sequence[Case], answers: Iterable[RecordedAnswer]) -> list[DemoRow]:
    """PER_CATEGORY answered cases of each category, the lowest by hash; in the order of their hashes.

    Raises ValueError if a category has too few.
    """
    answer_to = {answer.id: answer for answer in answers}
    chosen: list[Case] = []
    for category in CATEGORIES:
        answered = [case for case in cases if case.category == category and case.id in answer_to]
        if len(answered) < PER_CATEGORY:
            raise ValueError(f"only {len(answered)} answered cases of {category}")
        chosen += sorted(answered, key=_rank)[:PER_CATEGORY]
    return [DemoRow(case, answer_to[case.id]) for case in sorted(chosen, key=_rank)]


def encode(rows: Iterable[DemoRow]) -> bytes:
    """The rows as gzipped JSON lines. Compressed bytes may differ between builds of zlib; the lines do not."""
    return gzip.compress(msgspec.json.Encoder().encode_lines(list(rows)), compresslevel=9, mtime=0)


def write(data: StudyData, path: Path) -> None:
    """Draw the rows from the study data and write them to `path`."""
    path.write_bytes(encode(choose(data.bfcl(), data.recording(MODEL))))


def _rank(case: Case) -> bytes:
    return hashlib.sha256(f"{_SEED}\x00{case.id}".encode()).digest()
