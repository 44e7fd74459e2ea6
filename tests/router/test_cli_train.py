"""`smallcall train` from the command line."""

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from router.cli_train import shipped_data, train

app = typer.Typer()
app.command()(train)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--recipe", "nowhere"], "neither a recipe"),
        (["--recipe", "opt-350m"], "facebook/opt-350m"),
        (["--recipe", "smollm2-135m", "--base", "./no-such-folder"], "no-such-folder"),
    ],
)
def test_what_cannot_be_trained_is_said_in_one_line(options: list[str], said: str, tmp_path: Path) -> None:
    """A wrong recipe or base ends with code 1 and an error that names it, before any model library is loaded."""
    outcome = CliRunner().invoke(app, [*options, "--run", str(tmp_path / "run"), "--cache", str(tmp_path)])
    assert outcome.exit_code == 1
    assert said in outcome.stderr
    assert outcome.stderr.startswith("error: ")
    assert not (tmp_path / "run").exists()


def test_a_file_of_rows_must_exist() -> None:
    """A misspelt file is a usage error."""
    assert CliRunner().invoke(app, ["--data", "no-such-file.jsonl"]).exit_code == 2


def test_a_checkout_has_rows_to_train_on() -> None:
    """Without `--data` the repository's own rows are taken."""
    assert shipped_data().name == "train.jsonl.gz"
