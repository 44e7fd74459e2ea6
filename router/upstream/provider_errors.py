"""What a provider's error means: one table of kinds, read from every shape in which providers write errors.

The most exact word counts first: the error's code, then its type or status word, then a phrase of its message, then
the HTTP status. What the client is told of a kind, in each dialect, stands in `FACES`.
"""

from __future__ import annotations

import ast
import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from router.upstream.large_model import (
    ErrorKind,
    UpstreamError,
    UpstreamRateLimited,
    UpstreamRejected,
    UpstreamUnavailable,
)

_DETAILS = 4
"""So many complaints of a list of them are told."""
_LOCATION_PARTS = 16
_READ_CHARS = 10_000
"""Of a message, where a phrase or a pause is looked for."""


@dataclass(frozen=True, slots=True)
class ProviderError:
    """A provider's error, whatever its shape. Words that it did not say are empty."""

    message: str = ""
    code: str = ""
    type: str = ""
    word: str = ""
    """Google's `status`, such as RESOURCE_EXHAUSTED."""
    param: str | None = None
    status: int | None = None
    """An HTTP status that stands inside the error."""
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Face:
    """What a client is told of one kind of error."""

    status: int
    code: str
    default: str
    """The message where the provider gave none."""
    error: type[UpstreamError]
    retryable: bool = False
    messages_status: int | None = None
    """In the Messages dialect, where it is another: the type follows from it."""
    type: str | None = None
    """OpenAI's type, where it does not follow from the status."""


FACES: Mapping[ErrorKind, Face] = {
    ErrorKind.CONTEXT_LENGTH: Face(
        400, "context_length_exceeded", "the request is too long for the large model", UpstreamRejected
    ),
    ErrorKind.RATE: Face(
        429, "rate_limit_exceeded", "the large model is rate limited", UpstreamRateLimited, retryable=True
    ),
    ErrorKind.QUOTA: Face(
        429,
        "insufficient_quota",
        "the gateway's account at the large model's provider is used up",
        UpstreamRateLimited,
        messages_status=402,
        type="insufficient_quota",
    ),
    ErrorKind.OVERLOAD: Face(
        503,
        "server_is_overloaded",
        "the large model is overloaded",
        UpstreamUnavailable,
        retryable=True,
        messages_status=529,
    ),
    ErrorKind.AUTH: Face(
        502, "upstream_auth", "the large model refuses the gateway's credentials", UpstreamUnavailable
    ),
    ErrorKind.INVALID_REQUEST: Face(400, "upstream_rejected", "the large model refused the request", UpstreamRejected),
    ErrorKind.POLICY: Face(
        400, "content_policy_violation", "the large model's provider does not allow the request", UpstreamRejected
    ),
    ErrorKind.SERVER: Face(
        502, "upstream_unavailable", "the large model cannot be reached", UpstreamUnavailable, retryable=True
    ),
}

_WORDS: Mapping[ErrorKind, str] = {
    ErrorKind.CONTEXT_LENGTH: """context_length_exceeded context_window_exceeded model_context_window_exceeded
        contextwindowexceedederror prompt_too_long input_too_long max_context_length_exceeded exceed_context_size_error
        model_max_prompt_tokens_exceeded""",
    ErrorKind.QUOTA: """insufficient_quota billing_error billing_hard_limit_reached billing_not_active
        credit_balance_too_low insufficient_balance insufficient_credits insufficient_funds payment_required
        paymentrequirederror exceeded_current_quota_error quota_exceeded usage_limit_reached usage_not_included
        arrearage""",
    ErrorKind.POLICY: """content_filter content_policy_violation contentpolicyviolationerror invalid_prompt
        policy_violation cyber_policy_violation responsibleaipolicyviolation data_inspection_failed moderation_blocked
        safety_violation""",
    ErrorKind.OVERLOAD: """overloaded_error overloaded server_is_overloaded server_overloaded engine_overloaded
        engine_overloaded_error model_overloaded slow_down service_unavailable service_unavailable_error unavailable
        serviceunavailableerror capacity_exceeded""",
    ErrorKind.RATE: """rate_limit_exceeded rate_limit_error rate_limit rate_limited rate_limit_reached
        rate_limit_reached_error ratelimiterror too_many_requests toomanyrequests resource_exhausted
        throttlingexception throttling requests tokens""",
    ErrorKind.AUTH: """authentication_error authenticationerror invalid_api_key incorrect_api_key invalid_authentication
        invalid_authentication_error permission_error permission_denied permissiondeniederror unauthenticated
        unauthorized access_denied account_deactivated""",
    ErrorKind.INVALID_REQUEST: """invalid_request_error invalid_request badrequesterror bad_request bad_request_error
        invalid_argument failed_precondition not_found not_found_error notfounderror model_not_found
        unsupported_parameter unsupported_value validation_error unprocessableentityerror request_too_large""",
    ErrorKind.SERVER: """server_error api_error internal_server_error internal_error internal internalservererror
        timeout_error""",
}
_KIND_OF_WORD = {word: kind for kind, words in _WORDS.items() for word in words.split()}
_VAGUE = frozenset({ErrorKind.INVALID_REQUEST, ErrorKind.SERVER})
"""Said of many things: a phrase of the message or the status says it better."""

_PHRASES: tuple[tuple[ErrorKind, re.Pattern[str]], ...] = (
    (
        ErrorKind.CONTEXT_LENGTH,
        re.compile(
            r"maximum context length|context[ _]length exceeded|exceeds? (the |this |its )?[\w' ]{0,40}context"
            r"|context (window|length|size) (is |was )?exceeded|prompt is too long|input is too long"
            r"|(prompt|input)[\w ()]{0,60} (longer|larger|greater) than [\w ]{0,40}(context|max)"
            r"|input token count[\w ()]{0,40} exceeds|exceeds the maximum number of (input )?tokens"
            r"|exceeds? the (available )?context size|input length and `?max_tokens`? exceed"
            r"|reduce the length of (the|your) (messages|prompt|input)"
        ),
    ),
    (
        ErrorKind.QUOTA,
        re.compile(
            r"credit balance is too low|insufficient (balance|credits?|funds|quota)|exceeded your current quota"
            r"|requires more credits|payment required|billing (hard )?limit"
        ),
    ),
    (
        ErrorKind.POLICY,
        re.compile(
            r"content (management )?policy|usage policy|content[ _]filter|flagged (as|for|by)|safety (system|policy)"
        ),
    ),
    (
        ErrorKind.OVERLOAD,
        re.compile(r"\boverloaded\b|(at|over|exceeds?) (its )?capacity|server is busy"),
    ),
    (
        ErrorKind.RATE,
        re.compile(r"rate[ _-]limit|too many requests"),
    ),
    (
        ErrorKind.AUTH,
        re.compile(r"api key not valid|(invalid|incorrect|expired|missing) (api[ _-]?key|(bearer |access )?token\b)"),
    ),
)
_STATUSES: Mapping[int, ErrorKind] = {
    401: ErrorKind.AUTH,
    402: ErrorKind.QUOTA,
    403: ErrorKind.AUTH,
    429: ErrorKind.RATE,
    503: ErrorKind.OVERLOAD,
    529: ErrorKind.OVERLOAD,
}
_FIRM = frozenset({401, 402, 403, 503, 529})
"""Statuses that say what they mean, whatever a message's phrases."""

_BYTES = re.compile(r"\bb'(?:[^'\\]|\\.)*'|\bb\"(?:[^\"\\]|\\.)*\"")
_JSON = re.compile(r"[{[]")
_PAUSE = re.compile(r"(?:try again|retry) (?:in|after) (?:(\d{1,4})m(?!s))? ?(?:(\d{1,6}(?:\.\d{1,9})?) ?(ms|s))?")


def kind_of(error: ProviderError, status: int | None) -> ErrorKind:
    """What `error` means; `status` is the response's, None inside a stream or an answer of status 200."""
    known = [
        _KIND_OF_WORD[word.lower()] for word in (error.code, error.type, error.word) if word.lower() in _KIND_OF_WORD
    ]
    for kind in known:
        if kind not in _VAGUE:
            return kind
    status = status if status is not None else error.status
    if status not in _FIRM:
        said = error.message[:_READ_CHARS].lower()
        for kind, phrase in _PHRASES:
            # A quota that comes back by itself is a rate: some providers use the words of the one for the other.
            if phrase.search(said) and not (kind is ErrorKind.QUOTA and error.retry_after_s is not None):
                return kind
    if status is not None and status >= 400:
        return _STATUSES.get(status, ErrorKind.INVALID_REQUEST if status < 500 else ErrorKind.SERVER)
    return known[0] if known else ErrorKind.SERVER


# ── shapes ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_error(body: Any, *, refused: bool = False) -> ProviderError | None:
    """The error that `body` is, or None. `refused`: its status says that it is one, so a bare message is enough."""
    if isinstance(body, list):
        return read_error(body[0], refused=refused) if body and isinstance(body[0], dict) else None
    if not isinstance(body, dict):
        return None
    error = body.get("error")
    if isinstance(error, (dict, str)) and error:
        return _read(error, body)
    if body.get("type") == "response.failed":
        response = body.get("response")
        return _read((response.get("error") if isinstance(response, dict) else None) or {}, {})
    if body.get("type") == "error" or body.get("object") == "error":
        return _read(body, {})
    if "detail" in body and (refused or not body.keys() - {"detail", "status", "title", "type", "code"}):
        return _detail(body["detail"], body)
    if refused and isinstance(body.get("errors"), list) and body["errors"]:
        return read_error({"error": body["errors"][0]})
    return _read(body, {}) if refused else None


def read_text(text: str) -> ProviderError | None:
    """The error whose JSON stands in `text`, as exceptions quote it (also as Python writes bytes); None without any."""
    text = text[:_READ_CHARS]
    quoted = _BYTES.search(text)
    if quoted is not None:
        with contextlib.suppress(ValueError, SyntaxError):
            text = ast.literal_eval(quoted[0]).decode(errors="replace")
    found = _JSON.search(text)
    if found is None:
        return None
    try:
        body, _ = json.JSONDecoder().raw_decode(text, found.start())
    except (json.JSONDecodeError, RecursionError):
        return None
    return read_error(body, refused=True)


def _read(error: Any, around: Mapping[str, Any]) -> ProviderError:
    if not isinstance(error, dict):
        error = {"message": error} | {key: around[key] for key in ("code", "param") if key in around}
    if isinstance(error.get("error"), dict):
        return _read(error["error"], error)
    nested = error.get("detail")
    if nested and not error.get("message"):
        return _detail(nested, error)
    code, type_ = error.get("code"), error.get("type")
    inner = error.get("innererror")
    inner_code = inner.get("code") if isinstance(inner, dict) else None
    message = error.get("message") if isinstance(error.get("message"), str) else ""
    param = error.get("param")
    return ProviderError(
        message=str(message),
        code=_word(inner_code if _word(inner_code).lower() in _KIND_OF_WORD else code),
        type="" if type_ in ("error", "response.failed") else _word(type_),
        word=_word(error.get("status")),
        param=param if isinstance(param, str) else None,
        status=_status(code) or _status(error.get("status")),
        retry_after_s=_pause_s(str(message)[:_READ_CHARS]),
    )


def _detail(detail: Any, around: Mapping[str, Any]) -> ProviderError:
    """FastAPI's: a text, an error object, or a list of complaints with the place of each."""
    if isinstance(detail, dict):
        return _read(detail, {})
    if not isinstance(detail, list):
        return _read({**around, "detail": None, "message": detail}, {})
    told, param = [], None
    for one in detail[:_DETAILS]:
        if not isinstance(one, dict):
            told.append(str(one))
            continue
        parts = one.get("loc")
        known = parts[:_LOCATION_PARTS] if isinstance(parts, list) else []
        place = ".".join(str(part) for part in known if part != "body")
        param = param or place or None
        said = str(one.get("msg") or one.get("message") or "")
        told.append(f"{place}: {said}" if place else said)
    return ProviderError(message="; ".join(told), param=param)


def _word(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _status(value: Any) -> int | None:
    if isinstance(value, str) and re.fullmatch(r"[45]\d\d", value):
        return int(value)
    return value if type(value) is int and 400 <= value < 600 else None


def _pause_s(message: str) -> float | None:
    """Seconds until the provider wants to be asked again, where its message says so."""
    found = _PAUSE.search(message.lower())
    if found is None or not (found[1] or found[2]):
        return None
    seconds = float(found[2] or 0) / (1000 if found[3] == "ms" else 1)
    return 60.0 * int(found[1] or 0) + seconds
