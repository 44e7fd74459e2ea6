"""What keys spend, summed up in the transaction that commits the rows: the sums can neither miss a row nor outlive one
that was not committed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sqlalchemy import Insert
from sqlalchemy.dialects import postgresql, sqlite

from router.ledger.inserts import Values
from router.ledger.row import DecisionRow
from router.ledger.tables import access_spend


def _upsert(made: postgresql.Insert | sqlite.Insert) -> Insert:
    return made.on_conflict_do_update(
        index_elements=["period", "key_id"],
        set_={"spent_nusd": access_spend.c.spent_nusd + made.excluded.spent_nusd},
    )


_UPSERTS = {
    "postgresql": _upsert(postgresql.insert(access_spend)),
    "sqlite": _upsert(sqlite.insert(access_spend)),
}


def spending(rows: Sequence[DecisionRow], dialect: str) -> tuple[Insert, list[Values]]:
    """What adds the rows' `charged_nusd` to their keys' sums of the day, the month and in total."""
    sums: Counter[tuple[str, str]] = Counter()
    for row in rows:
        if row.key_id is not None and row.charged_nusd:
            for period in (row.created_at.strftime("%Y-%m-%d"), row.created_at.strftime("%Y-%m"), "total"):
                sums[period, row.key_id] += row.charged_nusd
    # In one order everywhere: two replicas that take the same rows in opposite orders would wait for each other.
    return _UPSERTS[dialect], [
        {"period": period, "key_id": key_id, "spent_nusd": sums[period, key_id]} for period, key_id in sorted(sums)
    ]
