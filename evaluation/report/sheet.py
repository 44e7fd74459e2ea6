"""A table before it is drawn: headers and cells as text, in the order in which people read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sheet:
    """Rows of cells under headers."""

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    folds: Sequence[str] = ()
    """Headers of the columns that hold words, which may be broken over lines. Figures and ids never are."""
    total: Sequence[str] | None = None
    """A last row, below a line."""
    caption: str = ""
