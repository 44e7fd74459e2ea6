"""The figures of simulated experiments, at a size that a test can afford."""

import json
from pathlib import Path

from typer.testing import CliRunner

from router.cli import app


def test_false_positives_keep_to_alpha_and_plans_to_their_power(tmp_path: Path) -> None:
    """However often one looks; with a seed the figures are the same each time."""
    command = ["ab", "figures", "--runs", "300", "--seed", "3", "--out", str(tmp_path)]
    outcome = CliRunner().invoke(app, command)
    assert outcome.exit_code == 0, outcome.output
    first = (tmp_path / "ab.json").read_bytes()
    told = json.loads(first)
    same = [one for one in told["experiments"] if one["control"] == one["treatment"]]
    other = [one for one in told["experiments"] if one["control"] != one["treatment"]]
    assert len(same) == len(other) == 3
    assert all(one["share"] <= told["alpha"] and one["units"] == 2 * one["planned_units"] for one in same)
    assert all(one["interval"][1] >= told["power"] for one in other)
    assert (tmp_path / "ab.md").read_text() in outcome.output
    CliRunner().invoke(app, command)
    assert (tmp_path / "ab.json").read_bytes() == first
