"""Decisions as a Parquet file, in row groups: memory holds one group, however large the ledger is.

Columns are the table's, and beside them what is known afterwards: `passed` (as somebody said), `tool_error` (whether a
tool refused the call), `audit_agreed`. `findings` and `content` are JSON text. The file appears whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import JSON, BigInteger, Boolean, DateTime, Float, Integer, select
from sqlalchemy.ext.asyncio import AsyncEngine

from router.ledger.outcomes import known, of_decisions
from router.ledger.store import zoned
from router.ledger.tables import audits, decisions

GROUP_ROWS = 5_000
MAX_GROUP_BYTES = 64 * 1024 * 1024
"""A group is closed when its JSON texts come to this much."""
_PAGE = 500
_ADDED = {"passed": pa.bool_(), "tool_error": pa.bool_(), "audit_agreed": pa.bool_()}


def _type(kind: Any) -> pa.DataType:
    match kind:
        case JSON():
            return pa.string()
        case Boolean():
            return pa.bool_()
        case BigInteger() | Integer():
            return pa.int64()
        case Float():
            return pa.float64()
        case DateTime():
            return pa.timestamp("us", tz="UTC")
        case _:
            return pa.string()


SCHEMA = pa.schema([*((column.name, _type(column.type)) for column in decisions.c), *_ADDED.items()])
_JSON = frozenset(column.name for column in decisions.c if isinstance(column.type, JSON))


async def export(
    engine: AsyncEngine, out: Path, since: datetime, until: datetime, told: Callable[[int], None] = lambda rows: None
) -> int:
    """Write decisions of `since` ≤ time < `until` to `out`; the number of rows. `told` gets the number so far.

    Raises:
        OSError: the file cannot be written. SQLAlchemyError: the ledger cannot be read.
    """
    part = out.with_name(out.name + ".part")
    rows = 0
    try:
        with pq.ParquetWriter(part, SCHEMA, compression="zstd") as writer:
            group: list[dict[str, Any]] = []
            size, after = 0, ""
            while page := await _page(engine, since, until, after):
                after = page[-1]["decision_id"]
                rows += len(page)
                size += sum(len(row[name] or "") for row in page for name in _JSON)
                group += page
                if len(group) >= GROUP_ROWS or size >= MAX_GROUP_BYTES:
                    writer.write_table(pa.Table.from_pylist(group, SCHEMA))
                    told(rows)
                    group, size = [], 0
            if group:
                writer.write_table(pa.Table.from_pylist(group, SCHEMA))
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    return rows


async def _page(engine: AsyncEngine, since: datetime, until: datetime, after: str) -> list[dict[str, Any]]:
    query = (
        select(decisions, audits.c.agreed.label("audit_agreed"))
        .select_from(decisions.outerjoin(audits, audits.c.decision_id == decisions.c.decision_id))
        .where(decisions.c.created_at >= since, decisions.c.created_at < until, decisions.c.decision_id > after)
        .order_by(decisions.c.decision_id)
        .limit(_PAGE)
    )
    async with engine.connect() as connection:
        rows = [
            {str(name): value for name, value in row.items()} for row in (await connection.execute(query)).mappings()
        ]
    if not rows:
        return rows
    found: dict[str, list[Any]] = {}
    for one in await of_decisions(engine, rows[0]["decision_id"], rows[-1]["decision_id"]):
        found.setdefault(one.decision_id, []).append(one)
    for row in rows:
        row["created_at"] = zoned(row["created_at"])
        for name in _JSON:
            row[name] = None if row[name] is None else json.dumps(row[name], ensure_ascii=False)
        told = known(found.get(row["decision_id"], ()))
        row["passed"], row["tool_error"] = told.passed, told.tool_error
    return rows
