"""The large model's answer on its way to the client: the client's own model name, true usage, and the row before the
end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import structlog

from router.decision import Decision
from router.dialects.chat_answers import DONE, sse
from router.dialects.errors import ClientError
from router.recorder import Recorder
from router.telemetry import where
from router.upstream import LargeModel, LargeStream, UpstreamError, usage_of

_log = structlog.get_logger("gateway")


def told(error: UpstreamError) -> ClientError:
    """An upstream error as our client sees it."""
    return ClientError(error.status, error.message, error.code, param=error.param, retry_after_s=error.retry_after_s)


async def whole_answer(decision: Decision, large: LargeModel, recorder: Recorder) -> dict[str, Any]:
    """A whole answer, its row committed. Raises UpstreamError, ClientError."""
    body = await large.complete(decision.chat.body)
    _count(decision, large, body)
    body["model"] = decision.chat.client_model
    if decision.chat.include_decision:
        body["smallcall"] = decision.extras()
    decision.answer = body
    await recorder.record(decision)
    return body


class Relay:
    """A stream of the large model. Chunks pass as they come, but for those that say the end: they wait for the row."""

    def __init__(self, decision: Decision, large: LargeModel, stream: LargeStream, recorder: Recorder) -> None:
        self._decision, self._large, self._stream, self._recorder = decision, large, stream, recorder

    async def events(self) -> AsyncIterator[bytes]:
        """Server-sent events. What breaks after the first byte ends in an error event, without `[DONE]`."""
        held: list[dict[str, Any]] = []
        try:
            async for chunk in self._stream:
                _count(self._decision, self._large, chunk)
                chunk["model"] = self._decision.chat.client_model
                choices = chunk.get("choices") or ()
                # Without choices and usage it is no end: some providers begin with such a chunk.
                if held or chunk.get("usage") or any(choice.get("finish_reason") for choice in choices):
                    held.append(chunk)
                else:
                    yield sse(chunk)
            held = self._ending(held)
            await self._recorder.record(self._decision)
        except UpstreamError as error:
            self._decision.failed(error.status, error.code)
            yield await self._broken(told(error))
        except ClientError as error:
            yield sse(error.body())
        except Exception as error:  # noqa: BLE001 - the client must not take a fault of ours for an answer's end
            _log.error("crashed", where=where(error), decision_id=self._decision.decision_id)
            failure = ClientError(500, "the gateway failed in mid-answer", "internal_error")
            self._decision.failed(failure.status, failure.code)
            yield await self._broken(failure)
        else:
            for chunk in held:
                yield sse(chunk)
            yield DONE

    async def close(self) -> None:
        """Close the upstream connection. A stream that did not come to its end gets its row here: the client left."""
        try:
            await self._stream.aclose()
        finally:
            if not self._decision.recorded:
                self._decision.left()
                await self._recorder.record(self._decision)

    def _ending(self, held: list[dict[str, Any]]) -> list[dict[str, Any]]:
        chat = self._decision.chat
        if not chat.include_usage:
            held = [chunk for chunk in held if chunk.get("choices")]
        if chat.include_decision and held:
            held[-1]["smallcall"] = self._decision.extras()
        return held

    async def _broken(self, error: ClientError) -> bytes:
        try:
            await self._recorder.record(self._decision)
        except ClientError as unrecorded:
            error = unrecorded
        return sse(error.body())


def _count(decision: Decision, large: LargeModel, answer: dict[str, Any]) -> None:
    usage = usage_of(answer)
    if usage is not None:
        decision.usage, decision.cost_usd = usage, large.cost_usd(usage)
