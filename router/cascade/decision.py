"""One decision while it is made: the state that its steps share. What it ends as stands beside it: the ledger's row
(`router.cascade.decision_row`), the `smallcall` object and headers (`router.cascade.decision_extras`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from policies.rules.judge import Contribution
from policies.types import Action, Draft, Stage, Verdict
from router.access.gate import Grant
from router.dialects.exchange import Exchange
from router.dialects.request import ChatRequest
from router.selection.assignment import Exposure
from router.selection.serving_policy import ServingPolicy
from router.selection.stickiness import Sticky
from router.small.worker_client import DraftBuilder
from router.upstream.answer_reader import AnswerSummary
from router.upstream.estimates import UnitPrices
from router.upstream.large_model import Tries, Usage
from slm.protocol import Info

Side = Literal["small", "large", "none"]
_UNDECIDED = Verdict(Action.CONTINUE, Stage.BEFORE, "undecided")


@dataclass(frozen=True, slots=True)
class Admission:
    """By which experiment, key and conversation a request comes; None each where there is none."""

    exposure: Exposure | None = None
    """The arm of an experiment that took it in."""
    grant: Grant | None = None
    """By which its key let it in."""
    sticky: Sticky | None = None
    """The turn of a remembered conversation that it is."""


NO_ADMISSION = Admission()


@dataclass(slots=True)
class SmallWork:
    """The small side's work for one decision; all None where no draft was asked for."""

    builder: DraftBuilder | None = None
    draft: Draft | None = None
    info: Info | None = None
    """The model that was loaded."""
    seconds: float | None = None
    """From asking for the draft to its end, whatever ended it."""
    explanation: Sequence[Contribution] | None = None
    """The signals that spoke most, where the client asked for them and the policy has them."""


@dataclass(slots=True)
class LargeWork:
    """The large side's work for one decision."""

    model: str | None = None
    """None where it was not to be asked."""
    usage: Usage | None = None
    cost_usd: float | None = None
    """None where it was not asked, or its usage or price is not known."""
    estimate_usd: float | None = None
    """Beyond `cost_usd`, of an answer that was truncated; see `router.upstream.estimates`."""
    tries: Tries = field(default_factory=Tries)
    summary: AnswerSummary = field(default_factory=AnswerSummary)
    unit_prices: UnitPrices | None = None
    """Where the small side answered in its place."""


@dataclass(slots=True)
class Decision:
    """The state of one decision. Mutable, owned by one request's task."""

    exchange: Exchange
    policy: ServingPolicy
    """For the whole request, whatever is swapped meanwhile."""
    admission: Admission = NO_ADMISSION
    clock: Callable[[], float] = time.monotonic
    began: float = field(init=False)
    verdict: Verdict = _UNDECIDED
    reason: str = _UNDECIDED.reason
    side: Side = "none"
    """Whose words the client gets."""
    small: SmallWork = field(default_factory=SmallWork)
    large: LargeWork = field(default_factory=LargeWork)
    audit_propensity: float | None = None
    status: int = 200
    error_code: str | None = None
    client_disconnected: bool = False
    answer: Mapping[str, Any] | None = None
    """The whole answer, where content is stored; of a streamed answer of the large model only its calls are."""
    recorded: bool = False

    def __post_init__(self) -> None:
        self.began = self.clock()

    @property
    def chat(self) -> ChatRequest:
        """The request."""
        return self.exchange.chat

    @property
    def decision_id(self) -> str:
        """The id that the row, the response's headers and the answer's calls bear."""
        return self.exchange.decision_id

    @property
    def latency_s(self) -> float:
        """Seconds since the request was parsed."""
        return self.clock() - self.began

    def set_verdict(self, verdict: Verdict) -> None:
        """Take the judge's last word, and its reason for the decision's."""
        self.verdict, self.reason = verdict, verdict.reason

    def fail(self, status: int, code: str) -> None:
        """Note that the client gets an error, or that the rest of its stream is one."""
        self.status, self.error_code = status, code

    def mark_disconnected(self) -> None:
        """Note that the client went away before its answer was complete."""
        self.client_disconnected = True
        self.fail(499, "client_disconnected")
