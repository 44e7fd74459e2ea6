"""Draw the demo's rows from the study data again: `python -m evaluation.demo`, in a checkout."""

from __future__ import annotations

from pathlib import Path

from evaluation.cases.study_data import StudyData
from evaluation.demo.rows import FILE, write

if __name__ == "__main__":
    write(StudyData.of_checkout(), Path(__file__).parent / FILE)
