"""Our scorer held against the verdicts that BFCL published, model by model: `make bench`, seconds."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.scorer_check import run
from bench.scorer_report import render_markdown, write
from evaluation.cases.study_data import StudyData
from router.cli.provenance import commit

COMMAND = "python -m bench.scorer"


def main() -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("evaluation/results"), help="default: %(default)s")
    given = parser.parse_args()
    check, at = run(StudyData.of_checkout()), commit()
    for path in write(check, given.out, command=COMMAND, commit=at):
        print(f"wrote {path}")
    print(render_markdown(check, command=COMMAND, commit=at))


if __name__ == "__main__":
    main()
