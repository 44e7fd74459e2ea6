"""Recorded answers, found by the content of a request."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from evaluation.cases.case import Case
from evaluation.cases.study_data import RecordedAnswer
from evaluation.recorded.wire import content_key, error_body


def served_name(model: str) -> str:
    """The provider's name of a recorded model, by which price maps know it: without BFCL's `-FC` and `-FC-Auto`."""
    return model.removesuffix("-Auto").removesuffix("-FC")


class NotServed(Exception):
    """A request that gets an OpenAI-shaped error instead of an answer."""

    def __init__(self, status: int, message: str, *, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = error_body(message, kind="invalid_request_error", code=code, param=param)


class Recordings:
    """Recorded answers, found by content. Several models may be served side by side."""

    def __init__(self, answers: Iterable[RecordedAnswer], cases: Iterable[Case]) -> None:
        """Answers to cases that are not given are left out.

        Raises ValueError if nothing is left, or if two cases that a model answered ask the same.
        """
        keys = {case.id: content_key(case.messages, case.tool_names) for case in cases}
        self._answers: dict[str, dict[str, RecordedAnswer]] = {}
        for answer in answers:
            if answer.id not in keys:
                continue
            of_model = self._answers.setdefault(served_name(answer.model), {})
            other = of_model.setdefault(keys[answer.id], answer)
            if other is not answer:
                raise ValueError(f"cases {other.id!r} and {answer.id!r} ask the same of {answer.model}")
        if not self._answers:
            raise ValueError("no answer belongs to one of the cases")

    @property
    def models(self) -> list[str]:
        """Names by which the models are served, sorted."""
        return sorted(self._answers)

    def __iter__(self) -> Iterator[RecordedAnswer]:
        return (answer for of_model in self._answers.values() for answer in of_model.values())

    def find(self, request: Mapping[str, Any]) -> RecordedAnswer:
        """The recorded answer to a chat-completions request. Raises NotServed."""
        name = request.get("model")
        of_model = self._answers.get(served_name(name)) if isinstance(name, str) else None
        if of_model is None:
            known = ", ".join(self.models)
            raise NotServed(404, f"there is no recording of this model, only of {known}", code="model_not_found")
        if request.get("n") not in (None, 1):
            raise NotServed(400, "one answer was recorded, so n must be 1", code="unsupported_value", param="n")
        try:
            tools = [tool["function"]["name"] for tool in request.get("tools") or ()]
            key = content_key(request["messages"], tools)
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise NotServed(400, "not a chat-completions request", code="invalid_request", param="messages") from error
        if key not in of_model:
            raise NotServed(404, "these messages and tools were not recorded", code="not_recorded", param="messages")
        answer = of_model[key]
        if not _satisfies(answer, request.get("tool_choice")):
            raise NotServed(404, "recorded with tool_choice auto only", code="not_recorded", param="tool_choice")
        return answer


def _satisfies(answer: RecordedAnswer, tool_choice: Any) -> bool:
    if tool_choice in (None, "auto"):
        return True
    called = [call.name for call in answer.calls or ()]
    if tool_choice == "none":
        return not called
    if tool_choice == "required":
        return bool(called)
    function = tool_choice.get("function") if isinstance(tool_choice, dict) else None
    return isinstance(function, dict) and bool(called) and set(called) == {function.get("name")}
