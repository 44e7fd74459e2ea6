"""Decisions of the ledger as `evaluation.live.decisions` takes them. Contents are read only of the rows that are
used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine

from evaluation.live.costs import Means, PricedLine, alternative_nusd
from evaluation.live.decision_traces import Kept
from evaluation.live.decisions import Observed
from evaluation.traces.wire import TextCall
from router.ledger.outcomes import Known, OutcomeLabel, known, of_decisions
from router.ledger.queries.costs import start_of, typical_answers
from router.ledger.row import NANO
from router.ledger.store import zoned
from router.ledger.tables import audits, decisions
from router.outcomes.harvest import opening_digest
from router.upstream.answer_reader import AnswerSummary

_PAGE = 500
_D = decisions.c
_COLUMNS = (
    "decision_id", "created_at", "side", "reason", "policy", "bundle_sha256", "outcome", "findings", "score",
    "probability", "tool", "audit_propensity", "small_model", "large_model", "small_cost_nusd", "large_cost_nusd",
    "large_estimate_nusd", "small_queue_s", "small_prefill_s", "small_decode_s", "latency_s", "request_bytes",
    "small_completion_tokens", "large_input_usd_per_mtok", "large_cached_input_usd_per_mtok",
    "large_output_usd_per_mtok",
)  # fmt: skip


async def observed(engine: AsyncEngine, first: date, last: date) -> list[Observed]:
    """Judged decisions of those days with a whole draft and an answer, in the order of time.

    Raises SQLAlchemyError, OSError.
    """
    typical = await typical_answers(engine, first, last)
    found: list[Observed] = []
    after = ""
    while page := await _page(engine, first, last, after):
        after = page[-1]["decision_id"]
        known = await _known(engine, page)
        found += [_observed(row, known.get(row["decision_id"]), typical) for row in page]
    return found


async def given_up(engine: AsyncEngine, first: date, last: date) -> int:
    """Return the number of drafts of those days that a policy gave up in mid-generation."""
    query = select(func.count()).where(*_within(first, last), _D.stage == "during")
    async with engine.connect() as connection:
        return int((await connection.execute(query)).scalar_one())


async def contents(engine: AsyncEngine, wanted: Sequence[Observed]) -> dict[str, Kept]:
    """Decision id → what the ledger kept of its request and answers, where it did."""
    kept: dict[str, Kept] = {}
    for start in range(0, len(wanted), _PAGE):
        ids = [row.decision_id for row in wanted[start : start + _PAGE]]
        query = (
            select(_D.decision_id, _D.content, _D.tenant, _D.key_id, audits.c.answer)
            .select_from(decisions.outerjoin(audits, audits.c.decision_id == _D.decision_id))
            .where(_D.decision_id.in_(ids), _D.content.is_not(None))
        )
        async with engine.connect() as connection:
            for row in await connection.execute(query):
                owner = row.tenant or row.key_id or ""
                kept[row.decision_id] = _kept(row.content, owner, row.answer)
    return kept


async def _page(engine: AsyncEngine, first: date, last: date, after: str) -> list[Mapping[str, Any]]:
    query = (
        select(
            *(_D[name] for name in _COLUMNS),
            audits.c.decision_id.is_not(None).label("compared"),
            audits.c.propensity.label("compared_with"),
            audits.c.agreed,
            audits.c.large_model.label("audited_by"),
            audits.c.cost_nusd.label("audit_nusd"),
            audits.c.latency_s.label("audit_s"),
        )
        .select_from(decisions.outerjoin(audits, audits.c.decision_id == _D.decision_id))
        .where(
            *_within(first, last),
            _D.decision_id > after,
            _D.stage == "after",
            _D.outcome.is_not(None),
            _D.side.in_(("small", "large")),
            _D.status == 200,
        )
        .order_by(_D.decision_id)
        .limit(_PAGE)
    )
    async with engine.connect() as connection:
        return [dict(row) for row in (await connection.execute(query)).mappings()]


def _within(first: date, last: date) -> tuple[Any, ...]:
    return _D.created_at >= start_of(first), _D.created_at < start_of(last + timedelta(days=1)), _D.policy != "pinned"


async def _known(engine: AsyncEngine, page: Sequence[Mapping[str, Any]]) -> dict[str, Known]:
    found: dict[str, list[OutcomeLabel]] = {}
    for one in await of_decisions(engine, page[0]["decision_id"], page[-1]["decision_id"]):
        found.setdefault(one.decision_id, []).append(one)
    return {decision_id: known(outcomes) for decision_id, outcomes in found.items()}


def _observed(row: Mapping[str, Any], known: Known | None, typical: Means) -> Observed:
    small = row["side"] == "small"
    return Observed(
        decision_id=row["decision_id"],
        created_at=zoned(row["created_at"]),
        small=small,
        judge=_judge(row),
        reason=row["reason"],
        outcome=row["outcome"],
        valid=not row["findings"],
        score=row["score"],
        probability=row["probability"],
        tool=row["tool"],
        told=_feedback_of(known),
        propensity=row["audit_propensity"] if small else row["compared_with"],
        compared=bool(row["compared"]),
        agreed=row["agreed"],
        small_model=row["small_model"],
        large_model=row["audited_by"] or row["large_model"],
        small_usd=_usd(row["small_cost_nusd"]),
        large_usd=_alternative_usd(row, typical) if small else _paid_usd(row),
        queue_s=row["small_queue_s"],
        prefill_s=row["small_prefill_s"],
        decode_s=row["small_decode_s"],
        latency_s=row["latency_s"],
        audit_s=row["audit_s"] if small else None,
    )


def _judge(row: Mapping[str, Any]) -> str:
    """A bundle by its digest; another policy by its name without its last threshold."""
    if row["bundle_sha256"] is not None:
        return f"bundle {row['bundle_sha256'][:12]}"
    name, _, _ = str(row["policy"]).rpartition(">=")
    return name or str(row["policy"])


def _feedback_of(found: Known | None) -> bool | None:
    """Return somebody's feedback, else False for a tool's refusal of its call; a tool that acted shows nothing."""
    if found is None:
        return None
    return found.passed if found.passed is not None else False if found.tool_error else None


def _paid_usd(row: Mapping[str, Any]) -> float | None:
    known = [row[name] for name in ("large_cost_nusd", "large_estimate_nusd") if row[name] is not None]
    return _usd(sum(known)) if known else None


def _alternative_usd(row: Mapping[str, Any], typical: Means) -> float | None:
    """Return the audit's cost, USD, else an estimate for such a request."""
    if row["audit_nusd"] is not None:
        return _usd(row["audit_nusd"])
    price, size, written = row["large_input_usd_per_mtok"], row["request_bytes"], row["large_output_usd_per_mtok"]
    if price is None or size is None or written is None:
        return None
    cached = row["large_cached_input_usd_per_mtok"]
    priced = PricedLine(
        bytes_by_input=size * price,
        bytes_by_cached=size * (price if cached is None else cached),
        output_prices=written,
        draft_tokens_by_output=(row["small_completion_tokens"] or 0) * written,
    )
    return _usd(alternative_nusd(priced, typical))


def _usd(nano: int | None) -> float | None:
    return None if nano is None else nano / NANO


def _kept(content: Mapping[str, Any], owner: str, audit: Mapping[str, Any] | None) -> Kept:
    request = content.get("request")
    request = request if isinstance(request, dict) else {}
    turns = request.get("messages")
    messages = [turn for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []
    tools = request.get("tools")
    functions = [tool.get("function") for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else []
    names = [function.get("name") for function in functions if isinstance(function, dict)]
    return Kept(
        messages=messages,
        tools=[name for name in names if isinstance(name, str)],
        conversation=f"{owner}/{opening_digest(messages)}" if messages else None,
        answer=_calls(content.get("answer")),
        audit=_calls({"choices": [{"message": audit}]}),
    )


def _calls(answer: Any) -> list[TextCall]:
    seen = AnswerSummary(keep=True)
    if isinstance(answer, dict):
        seen.whole(answer)
    return [TextCall(call.tool, call.arguments) for call in seen.calls]
