"""The `smallcall` command."""

from __future__ import annotations

import typer

app = typer.Typer(no_args_is_help=True, pretty_exceptions_show_locals=False)


@app.callback()
def main() -> None:
    """A gateway that lets a small model make the tool call first."""
