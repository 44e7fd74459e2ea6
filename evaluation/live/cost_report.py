"""A report of costs: as rows of text, JSON and one HTML page that loads nothing.

Names of tools, keys and arms are hostile: the page escapes them and its content security policy allows no script.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from decimal import Decimal
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from evaluation.live.costs import By, CostLine, Owner, Total, total, totals

_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]")
_NANO = 1_000_000_000
COLUMNS = ("requests", "small", "large $", "small $", "audits $", "spent $", "always large $*", "saved $*", "saved*")


@dataclass(frozen=True, slots=True)
class CostReport:
    """The money spent from `first` to `last`, both included, in UTC."""

    by: By
    first: date
    last: date
    rows: tuple[Total, ...]
    total: Total
    small_usd_per_hour: float
    judged_by: str | None
    """The policy of the newest decision that one judged."""
    certificate: str | None
    """In force for that decision."""

    @property
    def remarks(self) -> tuple[str, ...]:
        """The caveats that a reader must know, in sentences."""
        whole = self.total
        notes = [
            "* An estimate where the small model answered: the request's own size, and the length of the tenant's "
            "large answers with a call of the same day, at the prices that stood then.",
            f"Policy: {self.judged_by}; certificate in force: {self.certificate or 'none'}."
            if self.judged_by
            else "No policy has judged a request yet.",
        ]
        if not self.small_usd_per_hour:
            notes.append("The small model's machine counts as free now: see small.usd_per_hour.")
        if whole.unpriced:
            notes.append(f"{whole.unpriced} requests have no known cost and count as nothing: see large.price.")
        if whole.estimated:
            notes.append(
                f"{whole.estimated} answers were cut short: ${dollars(whole.large_estimate_nusd)} of what was spent "
                "is an estimate."
            )
        return tuple(notes)


def cost_report(
    lines: Sequence[CostLine],
    by: By,
    first: date,
    last: date,
    *,
    small_usd_per_hour: float,
    judged_by: str | None,
    certificate: str | None,
    owners: Mapping[str, Owner] | None = None,
) -> CostReport:
    """The report over lines of those days."""
    rows = tuple(totals(lines, by, owners))
    return CostReport(by, first, last, rows, total(rows), small_usd_per_hour, judged_by, certificate)


def dollars(nusd: int, places: int = 4) -> str:
    """Nano-dollars in dollars, rounded half to even."""
    return f"{round(Decimal(nusd) / _NANO, places):,}"


def cells(row: Total) -> tuple[str, ...]:
    """The figures of a row, as `COLUMNS` has them."""
    share = f"{row.share_small:.1%}" if row.share_small is not None else "–"
    saved = f"{row.saved_nusd / row.always_large_nusd:.1%}" if row.always_large_nusd else "–"
    large = row.large_nusd + row.large_estimate_nusd
    money = (large, row.small_nusd, row.audit_nusd, row.spent_nusd, row.always_large_nusd, row.saved_nusd)
    return (f"{row.requests:,}", share, *map(dollars, money), saved)


def as_json(report: CostReport) -> dict[str, Any]:
    """Everything, in whole nano-dollars."""
    return {
        "by": report.by,
        "first": report.first.isoformat(),
        "last": report.last.isoformat(),
        "rows": [_plain(row) for row in report.rows],
        "total": _plain(report.total),
        "policy": report.judged_by,
        "certificate": report.certificate,
        "small_usd_per_hour": report.small_usd_per_hour,
        "remarks": list(report.remarks),
    }


def as_html(report: CostReport) -> str:
    """The page."""
    assets = files("evaluation.report").joinpath("assets")
    style = assets.joinpath("costs.css").read_text(encoding="utf-8")
    source = assets.joinpath("costs.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, finalize=_visible)
    return environment.from_string(source).render(
        report=report,
        columns=COLUMNS,
        cells=cells,
        dollars=dollars,
        widest=max((row.always_large_nusd for row in report.rows), default=0),
        style=style,
        style_hash="sha256-" + base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
    )


def _plain(row: Total) -> dict[str, Any]:
    return asdict(row) | {"spent_nusd": row.spent_nusd, "saved_nusd": row.saved_nusd, "share_small": row.share_small}


def _visible(value: Any) -> Any:
    """Text with a sign in place of each character that shows nothing or turns the direction of writing. The style has
    line ends, and passes as it is."""
    if type(value) is str:
        return _UNSEEN.sub("\ufffd", value)
    return value
