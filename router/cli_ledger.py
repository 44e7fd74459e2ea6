"""`smallcall ledger`: prune and export; and what all commands share that read the ledger."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import typer
from rich.console import Console

from router.settings import Settings, SettingsError, load_settings

console = Console()
READ_S = 600.0
"""What a command waits for one statement; the gateway waits much shorter."""


def fail(message: str, code: int) -> typer.Exit:
    """Say why, and the exit to raise."""
    console.print(message, highlight=False, markup=False, soft_wrap=True)
    return typer.Exit(code)


def reading(config: Path | None) -> Settings:
    """The settings, or exit code 2."""
    try:
        return load_settings(config)
    except SettingsError as error:
        raise fail(f"configuration: {error}", 2) from None


def day_option(name: str, text: str | None) -> date | None:
    """A day, or exit code 2 that names the option."""
    if text is None:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise fail(f"{name}: not a day such as 2026-11-01", 2) from None
