"""What keys spend, summed up in the transaction that commits the rows: the sums can neither miss a row nor outlive one
that was not committed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from sqlalchemy import Insert, Table, insert
from sqlalchemy.dialects import postgresql, sqlite

from router.ledger.row import DecisionRow
from router.ledger.tables import access_spend


def spending(rows: Iterable[DecisionRow]) -> list[dict[str, Any]]:
    """What the rows add to their keys' sums of the day, the month and in total, as rows of `access_spend`. In one order
    everywhere: two replicas that take the same ones in opposite orders would wait for each other."""
    sums: Counter[tuple[str, str]] = Counter()
    for row in rows:
        if row.key_id is not None and row.charged_nusd:
            for period in (row.created_at.strftime("%Y-%m-%d"), row.created_at.strftime("%Y-%m"), "total"):
                sums[period, row.key_id] += row.charged_nusd
    ordered = sorted(sums.items())
    return [{"period": period, "key_id": key_id, "spent_nusd": spent} for (period, key_id), spent in ordered]


def insertion(table: Table, dialect_name: str) -> Insert:
    """How rows get into a table: as they are; into `access_spend` by adding to what is there."""
    if table is not access_spend:
        return insert(table)
    made = postgresql.insert(table) if dialect_name == "postgresql" else sqlite.insert(table)
    added = table.c.spent_nusd + made.excluded.spent_nusd
    return made.on_conflict_do_update(index_elements=["period", "key_id"], set_={"spent_nusd": added})
