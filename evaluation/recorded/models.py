"""The recorded large models that the study asks, and what an answer of theirs costs.

Prices are list prices in USD per million tokens, uncached, those of litellm's map where it has the model (a test holds
the two together). Tokens are the recording's own. xLAM-7b was run locally and recorded neither tokens nor a price: its
answers are charged the tokens that GPT-4o-mini's recording has for the same case, at what hosts ask for a model of
seven billion weights. That is an assumption, and is said wherever its figures stand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from evaluation.cases.case import Case
from evaluation.cases.study_data import RecordedAnswer, StudyData
from evaluation.recorded.index import served_name
from evaluation.recorded.trace import trace_of_recording
from evaluation.traces.client import ClientPrices
from evaluation.traces.table import Trace


@dataclass(frozen=True, slots=True)
class RecordedModel:
    """A recorded model with its prices."""

    recording: str
    """Its name among the recordings."""
    prices: ClientPrices
    tokens_of: str | None = None
    """The recording whose tokens are charged; its own for None."""
    assumption: str = ""
    """The part of its costs that was not recorded; empty where all was."""

    @property
    def name(self) -> str:
        """As its provider calls it."""
        return served_name(self.recording)


GPT_4O = RecordedModel("gpt-4o-2024-08-06-FC", ClientPrices(2.5, 10.0))
LARGE_MODELS: Sequence[RecordedModel] = (
    GPT_4O,
    RecordedModel("gpt-4o-mini-2024-07-18-FC", ClientPrices(0.15, 0.6)),
    RecordedModel("gpt-4-turbo-2024-04-09-FC", ClientPrices(10.0, 30.0)),
    RecordedModel("claude-3-5-sonnet-20240620-FC", ClientPrices(3.0, 15.0)),
    RecordedModel(
        "Salesforce_xLAM-7b-fc-r",
        ClientPrices(0.2, 0.2),
        tokens_of="gpt-4o-mini-2024-07-18-FC",
        assumption=(
            "xLAM-7b recorded neither tokens nor cost: assumed are GPT-4o-mini's tokens of the same case at 0.20 USD "
            "per million, in and out, which hosts ask for models of 7 billion weights"
        ),
    ),
)


def trace_of(model: RecordedModel, cases: Sequence[Case], data: StudyData, *, command: str) -> Trace:
    """The model's recorded answers to those of the cases that it answered, priced."""
    answers = data.recording(model.recording)
    if model.tokens_of is not None:
        answers = _with_tokens(answers, data.recording(model.tokens_of))
    return trace_of_recording(cases, answers, arm=model.name, prices=model.prices, command=command)


def _with_tokens(answers: Sequence[RecordedAnswer], other: Sequence[RecordedAnswer]) -> list[RecordedAnswer]:
    by_id = {answer.id: answer for answer in other}
    return [
        replace(answer, input_tokens=by_id[answer.id].input_tokens, output_tokens=by_id[answer.id].output_tokens)
        for answer in answers
        if answer.id in by_id
    ]
