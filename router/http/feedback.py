"""`POST /v1/feedback`: somebody says whether an answer, or one of its calls, was right.

`{"decision_id" or "tool_call_id", "label": "pass" | "fail", "score": 0 to 1, "comment": text}`, with a label or score.
Without a label, a score of at least a half is a pass. Said again, it replaces what was said before.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

import orjson
from fastapi import Request, Response
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from router.dialects.chat_completions import ChatCompletions
from router.dialects.errors import ClientError, wrong
from router.dialects.parsing import decoded
from router.http.inflight import InflightLimit
from router.http.response import error_response
from router.http.services import services_of
from router.ledger.outcomes import (
    MAX_COMMENT_CHARS,
    WHOLE_ANSWER,
    OutcomeLabel,
    Place,
    known_decision,
    now,
    places,
    record,
)

MAX_BODY_BYTES = 64 * 1024
MAX_ID_CHARS = 256
_FIELDS = frozenset({"decision_id", "tool_call_id", "label", "score", "comment"})
_LABELS = {"pass": 1, "fail": 0}
_DIALECT = ChatCompletions()


def feedback_route(
    inflight: InflightLimit,
    body: Callable[[Request, int], Awaitable[bytes]],
    clock: Callable[[], datetime] = now,
) -> Callable[[Request], Awaitable[Response]]:
    """The route; `body` reads a request's bytes within a bound. A key may judge its own decisions only."""

    async def feedback(request: Request) -> Response:
        try:
            services = services_of(request.scope)
            key = services.gate.caller(request.headers)
            slot = inflight.enter()
        except ClientError as error:
            return error_response(error, _DIALECT)
        try:
            await services.gate.count(key)
            fields = _read(decoded(await body(request, MAX_BODY_BYTES)))
            key_id = key.key_id if key is not None else None
            place = await _recorded(services.ledger.engine, fields, key_id, clock())
        except ClientError as error:
            return error_response(error, _DIALECT)
        finally:
            slot.leave()
        answer = {"decision_id": place.decision_id, "call_index": _shown(place.call_index), "recorded": True}
        return Response(orjson.dumps(answer), media_type="application/json")

    return feedback


def _shown(call_index: int) -> int | None:
    return None if call_index == WHOLE_ANSWER else call_index


async def _recorded(engine: AsyncEngine, fields: dict[str, Any], owner: str | None, at: datetime) -> Place:
    """Raises ClientError: 404, 503."""
    try:
        place = await _place(engine, fields, owner)
        score = float(fields["score"]) if "score" in fields else None
        outcome = OutcomeLabel(
            decision_id=place.decision_id,
            source="feedback",
            call_index=place.call_index,
            at=at,
            label=_LABELS[fields["label"]] if "label" in fields else int((score or 0.0) >= 0.5),
            strength="strong",
            reason="feedback",
            fault="unknown",
            score=score,
            comment=fields.get("comment"),
        )
        await record(engine, [outcome])
    except (SQLAlchemyError, OSError) as error:
        raise ClientError(503, "the feedback could not be recorded", "ledger_unavailable") from error
    return place


async def _place(engine: AsyncEngine, fields: dict[str, Any], owner: str | None) -> Place:
    decision_id, call_id = fields.get("decision_id"), fields.get("tool_call_id")
    if call_id is not None:
        place = (await places(engine, [call_id], owner)).get(call_id)
        if place is not None and decision_id in (None, place.decision_id):
            return place
        raise _unknown("tool_call_id")
    assert decision_id is not None
    if await known_decision(engine, decision_id, owner):
        return Place(decision_id, WHOLE_ANSWER)
    raise _unknown("decision_id")


def _unknown(field: str) -> ClientError:
    return ClientError(404, f"{field}: no decision of this key", "unknown_decision", param=field)


def _read(fields: dict[str, Any]) -> dict[str, Any]:
    """A checked body. Raises ClientError: 400, naming the field."""
    for field in fields:
        if field not in _FIELDS:
            raise wrong(field, f"is not known; there are {', '.join(sorted(_FIELDS))}")
    fields = {field: value for field, value in fields.items() if value is not None}
    for field in ("decision_id", "tool_call_id"):
        value = fields.get(field)
        if value is not None and (not isinstance(value, str) or not 0 < len(value) <= MAX_ID_CHARS or "\0" in value):
            raise wrong(field, f"must be text of 1 to {MAX_ID_CHARS} characters")
    if "decision_id" not in fields and "tool_call_id" not in fields:
        raise wrong("decision_id", "or tool_call_id must be there")
    _check_judgement(fields)
    return fields


def _check_judgement(fields: dict[str, Any]) -> None:
    label, score, comment = fields.get("label"), fields.get("score"), fields.get("comment")
    if label is not None and (not isinstance(label, str) or label not in _LABELS):
        raise wrong("label", "must be pass or fail")
    if score is not None and (isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1):
        raise wrong("score", "must be a number from 0 to 1")
    if label is None and score is None:
        raise wrong("label", "or score must be there")
    if comment is not None and (not isinstance(comment, str) or len(comment) > MAX_COMMENT_CHARS):
        raise wrong("comment", f"must be text of at most {MAX_COMMENT_CHARS} characters")
