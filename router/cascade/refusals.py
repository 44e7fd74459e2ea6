"""Why a request gets no answer from the side that it is left with, named by the field that makes it so."""

from __future__ import annotations

from policies.types import Stage, Verdict
from router.dialects.errors import ClientError
from router.dialects.request import ChatRequest, LargeOnlyRequest

_PARAMS = {"no_tools": "tools", "tool_choice_none": "tool_choice"}


def not_servable_small(chat: ChatRequest, verdict: Verdict) -> ClientError:
    """For a request that is pinned to the small model: 422 where its draft is not valid, 400 where it cannot draft."""
    detail = "; ".join(verdict.findings) or verdict.reason
    if verdict.stage is Stage.AFTER:
        return ClientError(422, f"the small model's draft is not valid: {detail}", "small_draft_invalid")
    param = chat.large_only.param if chat.large_only else _schema_param(verdict) or _PARAMS.get(verdict.reason)
    named = f"{param}: " if param else ""
    return ClientError(400, f"{named}the small model cannot take this: {detail}", verdict.reason, param=param)


def no_large_model(verdict: Verdict) -> ClientError:
    """Without a large model: 400 where a schema is at fault, else 503 that says what to set."""
    param = _schema_param(verdict)
    if param is not None:
        detail = "; ".join(verdict.findings)
        return ClientError(400, f"{param}: no large model is configured, and {detail}", verdict.reason, param=param)
    message = (
        f"the small model may not answer this ({verdict.reason}) and no large model is configured: "
        "set large.model (SMALLCALL_LARGE__MODEL) and its key"
    )
    return ClientError(503, message, "large_not_configured")


def not_translatable(native_only: LargeOnlyRequest) -> ClientError:
    """400: only a large model that speaks the client's own dialect could do this, and the configured one does not."""
    param = native_only.param
    why = "the large model does not speak this dialect itself, and cannot be told this in its own"
    if native_only.reason == "stored_state":
        why = "responses are not stored here: send the whole conversation in input"
    return ClientError(400, f"{param}: {why}", native_only.reason, param=param)


def _schema_param(verdict: Verdict) -> str | None:
    """The field that a finding on a schema points to: `/tools/3/function/…` becomes `tools[3].function.…`."""
    if verdict.reason != "schema_unsupported" or not verdict.findings:
        return None
    pointer = verdict.findings[0].partition(" at /")[2].partition(":")[0]
    head, *rest = pointer.split("/")[:4]
    return head + "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in rest)
