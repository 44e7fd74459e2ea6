"""The command line as a whole: what `--help` says there is, and options in groups."""

from dataclasses import dataclass
from importlib.metadata import version
from typing import Annotated

import typer
from typer.testing import CliRunner

from router.__main__ import app
from router.cli.options import with_groups, words

PANELS = {
    "Run a gateway": ["serve", "demo", "keys", "models"],
    "Look at what it did": ["costs", "audits", "drift", "report", "ledger", "ab"],
    "Improve what it does": ["harvest", "train", "fit", "tune"],
    "The lab": ["recorded", "study", "engine"],
}


def test_the_help_groups_all_commands_as_a_user_thinks() -> None:
    """Every command stands in one panel, with a sentence."""
    told = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "300"})
    assert told.exit_code == 0, told.output
    found: dict[str, list[str]] = {}
    panel = ""
    for line in told.output.splitlines():
        if line.startswith("╭─"):
            panel = line.strip("╭─╮ ")
        elif line.startswith("│") and panel in PANELS:
            name, _, said = line.strip("│ ").partition(" ")
            found.setdefault(panel, []).append(name)
            assert len(said.strip()) > 10, line
    assert found == PANELS


def test_the_version_is_told() -> None:
    """As the package's metadata has it."""
    told = CliRunner().invoke(app, ["--version"])
    assert (told.exit_code, told.stdout) == (0, f"smallcall {version('smallcall')}\n")


@dataclass(frozen=True)
class Size:
    """How large it is."""

    width: Annotated[int, typer.Option(min=1)] = 3
    name_of_it: Annotated[list[str] | None, typer.Option(help="repeat for more")] = None
    flat: Annotated[bool, typer.Option()] = False


def test_a_group_is_one_value_for_the_command_and_single_options_for_the_user() -> None:
    """Defaults, bounds and lists are those of the fields; the words of a group are what the user gave."""
    made: list[tuple[Size, str]] = []
    own = typer.Typer()

    @own.command()
    @with_groups
    def draw(size: Size, colour: str = "red") -> None:
        made.append((size, colour))

    run = CliRunner()
    assert run.invoke(own, []).exit_code == 0
    given = ["--width", "5", "--name-of-it", "a", "--name-of-it", "b", "--flat"]
    assert run.invoke(own, [*given, "--colour", "blue"]).exit_code == 0
    assert made == [(Size(), "red"), (Size(5, ["a", "b"], True), "blue")]
    assert list(map(str, words(made[1][0]))) == given
    assert words(made[0][0]) == []
    assert run.invoke(own, ["--width", "0"]).exit_code == 2
    assert "How large it is" in run.invoke(own, ["--help"]).output
