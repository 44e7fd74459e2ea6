"""Decisions summed by day, key, tool, arm, side and reason: by the database, in one pass over an index of time."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Literal

from sqlalchemy import ColumnElement, Float, and_, case, extract, func, literal_column, select
from sqlalchemy.ext.asyncio import AsyncEngine

from evaluation.live.costs import CostLine, Group, Means, lines, means
from router.ledger.tables import COUNTED, NANO_USD, audits, decisions, rolled_days, rollups

_D = decisions.c
Finer = Literal["model", "hour"]
_KEYS = ("key_id", "tool", "experiment", "arm", "side", "reason")


def start_of(day: date) -> datetime:
    """Its midnight, UTC."""
    return datetime.combine(day, time(), UTC)


def _sum(value: Any, when: ColumnElement[bool] | None = None) -> ColumnElement[Any]:
    return func.coalesce(func.sum(value if when is None else case((when, value), else_=0)), 0)


def _count(when: ColumnElement[bool]) -> ColumnElement[Any]:
    return _sum(1, when)


_NONE: ColumnElement[str] = literal_column("''")  # no parameter: PostgreSQL would not see that two are one
_GROUPED = {name: func.coalesce(_D[name], _NONE) for name in _KEYS}
_SMALL: ColumnElement[str] = literal_column("'small'")
_FINER: dict[Finer, ColumnElement[Any]] = {
    "model": func.coalesce(case((_D.side == _SMALL, _D.small_model), else_=_D.large_model), _NONE),
    "hour": extract("hour", _D.created_at),
}
"""What the rows tell beyond a roll-up: the model that answered, or was asked; the hour of the day, UTC."""


def _columns() -> dict[str, ColumnElement[Any]]:
    """What is summed of each group, by the names of `CostLine` and `Group`."""
    small = and_(_D.side == "small", _D.reason != "upstream_unavailable")
    priced = and_(small, _D.large_input_usd_per_mtok.is_not(None), _D.request_bytes.is_not(None))
    told = and_(_D.side == "large", _D.large_prompt_tokens.is_not(None), _D.request_bytes.is_not(None))
    called = and_(told, _D.tool.is_not(None))
    asked = and_(_D.large_model.is_not(None), func.coalesce(_D.large_attempts, 1) > 0)
    unknown = and_(asked, _D.large_cost_nusd.is_(None), _D.large_estimate_nusd.is_(None), _D.side == "large")
    size = func.coalesce(_D.request_bytes, 0).cast(Float)
    paid = func.coalesce(_D.large_cost_nusd, 0) + func.coalesce(_D.large_estimate_nusd, 0)
    return {
        "requests": func.count(),
        "failed": _count(_D.status >= 400),
        "unpriced": _count(unknown) + _count(and_(small, _D.large_input_usd_per_mtok.is_(None))),
        "estimated": _count(_D.large_estimate_nusd.is_not(None)),
        "large_prompt_tokens": _sum(_D.large_prompt_tokens),
        "large_cached_tokens": _sum(_D.large_cached_tokens),
        "large_completion_tokens": _sum(_D.large_completion_tokens),
        "small_prompt_tokens": _sum(_D.small_prompt_tokens),
        "small_completion_tokens": _sum(_D.small_completion_tokens),
        "large_nusd": _sum(_D.large_cost_nusd),
        "large_estimate_nusd": _sum(_D.large_estimate_nusd),
        "small_nusd": _sum(_D.small_cost_nusd),
        "audit_nusd": _sum(audits.c.cost_nusd),
        "always_large_nusd": _sum(paid),
        "priced_small": _count(priced),
        "bytes_by_input": _sum(size * _D.large_input_usd_per_mtok, priced),
        "bytes_by_cached": _sum(size * _D.large_cached_input_usd_per_mtok, priced),
        "output_prices": _sum(_D.large_output_usd_per_mtok, priced),
        "draft_tokens_by_output": _sum(
            func.coalesce(_D.small_completion_tokens, 0) * _D.large_output_usd_per_mtok, priced
        ),
        "told": _count(told),
        "told_bytes": _sum(_D.request_bytes, told),
        "told_prompt_tokens": _sum(_D.large_prompt_tokens, told),
        "told_cached_tokens": _sum(_D.large_cached_tokens, told),
        "called": _count(called),
        "called_tokens": _sum(_D.large_completion_tokens, called),
    }


_SUMMED = _columns()
_FLOATS = frozenset({"bytes_by_input", "bytes_by_cached", "output_prices", "draft_tokens_by_output"})
_OF_LINE = (*COUNTED, *NANO_USD)


async def day_lines(engine: AsyncEngine, first: date, last: date, finer: Finer | None = None) -> list[CostLine]:
    """The lines of the days from `first` to `last`, by what is left of their rows, rolled up or not."""
    return lines(await _groups(engine, first, last, finer))


async def typical_answers(engine: AsyncEngine, first: date, last: date) -> Means:
    """What the large model's answers of those days were like, by what is left of their rows."""
    return means(await _groups(engine, first, last), minimum=1) or Means()


async def _groups(engine: AsyncEngine, first: date, last: date, finer: Finer | None = None) -> list[Group]:
    day = func.date(_D.created_at)
    grouped = _GROUPED if finer is None else {**_GROUPED, finer: _FINER[finer]}
    keys = [column.label(name) for name, column in grouped.items()]
    query = (
        select(day.label("day"), *keys, *(value.label(name) for name, value in _SUMMED.items()))
        .select_from(decisions.outerjoin(audits, audits.c.decision_id == _D.decision_id))
        .where(_D.created_at >= start_of(first), _D.created_at < start_of(last + timedelta(days=1)))
        .group_by(day, *grouped.values())
    )
    async with engine.connect() as connection:
        found = (await connection.execute(query)).mappings().all()
    return [_group(dict(row)) for row in found]


def _group(row: dict[str, Any]) -> Group:
    day = row.pop("day")
    keys = {name: row.pop(name) for name in _KEYS}
    finer = {"model": row.pop("model")} if "model" in row else {}
    if "hour" in row:
        finer = {"hour": f"{int(row.pop('hour')):02d}"}
    whole = {name: float(value) if name in _FLOATS else int(value) for name, value in row.items()}
    line = CostLine(day=_day(day), **keys, **finer, **{name: whole.pop(name) for name in _OF_LINE})  # type: ignore[arg-type]
    return Group(line=line, **whole)  # type: ignore[arg-type]


def _day(value: Any) -> date:
    """SQLite gives text."""
    return value if isinstance(value, date) else date.fromisoformat(value)


async def cost_lines(engine: AsyncEngine, first: date, last: date, finer: Finer | None = None) -> list[CostLine]:
    """The lines of those days: of a day that was rolled up by its roll-up, which tells nothing finer, else by its
    rows."""
    gone = await _rolled(engine, first, last)
    while True:
        live = [line for line in await day_lines(engine, first, last, finer) if line.day not in gone]
        before, gone = gone, await _rolled(engine, first, last)
        if gone == before:
            break  # else a day was rolled up meanwhile, and some of its rows may not have been seen
    async with engine.connect() as connection:
        kept = await connection.execute(select(rollups).where(rollups.c.day.in_(gone)))
        rolled = [CostLine(**_plain(row)) for row in kept.mappings()]
    return sorted([*rolled, *live], key=lambda line: line.day)


async def _rolled(engine: AsyncEngine, first: date, last: date) -> set[date]:
    query = select(rolled_days.c.day).where(rolled_days.c.day.between(first, last))
    async with engine.connect() as connection:
        return set((await connection.execute(query)).scalars())


def _plain(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(name): value for name, value in row.items()}


async def newest_judgement(engine: AsyncEngine) -> tuple[str | None, str | None]:
    """The policy of the newest decision that one judged, and the certificate that was in force for it."""
    query = select(_D.policy, _D.certificate).where(_D.policy != "pinned", _D.decision_id > "").limit(1)
    async with engine.connect() as connection:
        found = (await connection.execute(query.order_by(_D.decision_id.desc()))).first()
    return (found[0], found[1]) if found else (None, None)


async def span(engine: AsyncEngine) -> tuple[date, date] | None:
    """The first and the last day that the ledger knows of."""
    async with engine.connect() as connection:
        first, last = (await connection.execute(select(func.min(_D.created_at), func.max(_D.created_at)))).one()
        rolled = (await connection.execute(select(func.min(rolled_days.c.day), func.max(rolled_days.c.day)))).one()
    days = [found.date() for found in (first, last) if found is not None] + [day for day in rolled if day is not None]
    return (min(days), max(days)) if days else None
