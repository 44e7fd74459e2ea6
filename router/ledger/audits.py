"""Shadow audits as they are kept, and the answers that could have been audited."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import date, datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import func, insert, select
from sqlalchemy.ext.asyncio import AsyncEngine

from router.ledger.queries.costs import start_of
from router.ledger.store import storable
from router.ledger.tables import audits, decisions


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What the large model said where the small one had answered."""

    decision_id: str
    at: datetime
    propensity: float
    agreed: bool | None
    """None: it failed, or could not be compared; `reason` says which."""
    reason: str
    large_model: str
    prompt_tokens: int | None
    completion_tokens: int | None
    cost_nusd: int | None
    latency_s: float
    answer: Mapping[str, Any] | None
    """Its calls as an assistant's message, with `ledger.store_content` only."""


class Auditable(NamedTuple):
    """An answer of the small model that could have been audited."""

    decision_id: str
    tool: str | None
    score: float | None
    propensity: float
    audited: bool
    agreed: bool | None
    cost_nusd: int | None
    reason: str | None


async def record_audit(engine: AsyncEngine, audit: Audit) -> None:
    """Write it. Raises SQLAlchemyError, OSError."""
    values = asdict(audit)
    values["large_model"], values["reason"] = storable(audit.large_model, 256), storable(audit.reason, 64)
    async with engine.begin() as connection:
        await connection.execute(insert(audits), [values])


async def spent_nusd(engine: AsyncEngine, day: date) -> int:
    """What the audits of a UTC day cost, as far as it is known."""
    within = audits.c.at >= start_of(day), audits.c.at < start_of(day + timedelta(days=1))
    async with engine.connect() as connection:
        return int((await connection.execute(select(func.sum(audits.c.cost_nusd)).where(*within))).scalar() or 0)


async def auditable(engine: AsyncEngine, first: date, last: date) -> list[Auditable]:
    """Of decisions from `first` to `last`, both included, in the order of time."""
    query = (
        select(
            decisions.c.decision_id,
            decisions.c.tool,
            func.coalesce(decisions.c.probability, decisions.c.score),
            decisions.c.audit_propensity,
            audits.c.decision_id.is_not(None),
            audits.c.agreed,
            audits.c.cost_nusd,
            audits.c.reason,
        )
        .select_from(decisions.outerjoin(audits, audits.c.decision_id == decisions.c.decision_id))
        .where(
            decisions.c.audit_propensity.is_not(None),
            decisions.c.created_at >= start_of(first),
            decisions.c.created_at < start_of(last + timedelta(days=1)),
        )
        .order_by(decisions.c.decision_id)
    )
    async with engine.connect() as connection:
        return [Auditable(*row) for row in (await connection.execute(query)).all()]
