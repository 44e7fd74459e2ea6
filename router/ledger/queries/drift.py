"""What `evaluation.live.drift` needs of decisions: signals of a period, tool sets that are new, and audited answers."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine

from router.ledger.queries.costs import start_of
from router.ledger.tables import decisions

_D = decisions.c
SIGNALS = ("score", "n_tools", "n_messages", "request_bytes", "small_prompt_tokens", "small_completion_tokens")
MAX_ROWS = 200_000
"""Of a period: its newest."""


def _within(first: date, last: date) -> tuple[Any, ...]:
    return _D.created_at >= start_of(first), _D.created_at < start_of(last + timedelta(days=1)), _D.policy != "pinned"


async def signals(engine: AsyncEngine, first: date, last: date) -> Mapping[str, npt.NDArray[np.float64]]:
    """Each signal of the judged decisions of those days, (n,); NaN where a decision has not got it."""
    query = select(*(_D[name] for name in SIGNALS)).where(*_within(first, last))
    async with engine.connect() as connection:
        rows = (await connection.execute(query.order_by(_D.decision_id.desc()).limit(MAX_ROWS))).all()
    table = np.array([[np.nan if value is None else value for value in row] for row in rows], dtype=np.float64)
    table = table.reshape(-1, len(SIGNALS))
    return {name: table[:, index] for index, name in enumerate(SIGNALS)}


async def new_tool_sets(engine: AsyncEngine, then: tuple[date, date], now: tuple[date, date]) -> tuple[int, int]:
    """How many judged decisions of `now` there are, and how many of them offered a set of tools, by its hash, that no
    decision of `then` did."""
    known = select(_D.tools_sha256).where(*_within(*then))
    count = select(func.count()).where(*_within(*now))
    async with engine.connect() as connection:
        every = (await connection.execute(count)).scalar_one()
        new = (await connection.execute(count.where(_D.tools_sha256.not_in(known)))).scalar_one()
    return int(every), int(new)
