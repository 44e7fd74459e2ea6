"""The vocabulary of a judgement: a request seen by the judge, a draft, a verdict, and the policy protocol.

Plain values only: what the small model did arrives here as text and arrays, so that the judge can be run over a live
draft and over a recorded table alike. Nothing here imports a model, a web framework or a provider.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

Json = Any
"""A decoded JSON value."""


class Span(IntEnum):
    """The part of a draft that a token writes. The order is the priority where one token writes several things."""

    SYNTAX = 0
    """The frame of the pattern and JSON punctuation."""
    PLAN = 1
    """Tool names (or `none`, `ask`) in the `Thought:` line: where the tool is decided."""
    NAME = 2
    """The tool name after `Action:`; under a grammar it is forced by the plan."""
    KEY = 3
    """An argument's key."""
    VALUE = 4
    """An argument's value (strings without their quotes)."""


class HiddenPlace(IntEnum):
    """Where in a draft a hidden state is taken: rows of `Draft.hidden`."""

    FIRST = 0
    """Where the draft's first token is chosen: the end of the prompt."""
    PLAN = 1
    """Where the first token of the first planned tool's name (or `none`, `ask`) is chosen."""
    NAME = 2
    """Where the first token of the first called tool's name is chosen."""
    VALUES = 3
    """Mean over the tokens of argument values."""
    LAST = 4
    """Where the last token is chosen."""


HIDDEN_SIZE = 16
"""Numbers of one projected hidden state."""


class Outcome(StrEnum):
    """The next step that a draft calls for."""

    CALLS = "calls"
    NO_CALL = "no_call"
    ASK = "ask"
    UNPARSABLE = "unparsable"


class Action(StrEnum):
    """The action that a verdict orders. `CONTINUE` is only lawful before and during a draft."""

    ANSWER = "answer"
    ESCALATE = "escalate"
    CONTINUE = "continue"


class Stage(StrEnum):
    """When a policy spoke: before decoding, when the plan stands, or on the whole draft."""

    BEFORE = "before"
    DURING = "during"
    AFTER = "after"


@dataclass(frozen=True, slots=True)
class Tool:
    """One offered tool. `parameters` is a JSON Schema (hostile input: see `policies.validation`)."""

    name: str
    description: str
    parameters: Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class Request:
    """A request as the judge sees it.

    `tool_choice` is `auto`, `required`, or the name of the one tool that must be called in `forced_tool`.
    """

    messages: Sequence[Mapping[str, Json]]
    tools: Sequence[Tool]
    tool_choice: Literal["auto", "none", "required", "named"] = "auto"
    forced_tool: str | None = None
    parallel_tool_calls: bool = True


@dataclass(frozen=True, slots=True)
class DraftCall:
    """One drafted call; `arguments` is the JSON text exactly as it was written."""

    name: str
    arguments: str


FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
SpanArray = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class TokenSignals:
    """The engine's measurements for each of the draft's T tokens; every array has shape (T,).

    All probabilities are of the **unmasked** distribution, so a grammar cannot hide the model's doubt.
    """

    logprob: FloatArray
    """Natural logarithm of the written token's probability; nats, ≤ 0."""
    margin: FloatArray
    """p(best) − p(second best), of the unmasked distribution; in [0, 1]."""
    entropy: FloatArray
    """Entropy of the unmasked distribution; nats."""
    feasible_mass: FloatArray
    """Z = Σ p over the tokens that the grammar allowed; in [0, 1]; 1 without a grammar. Low: forced into validity."""
    forced: BoolArray
    """True where the grammar left one possibility and no decode step was spent."""
    span: SpanArray
    """Values of `Span`."""
    layer_agreement: FloatArray | None = None
    """Share of the probed inner layers that put the written token first, in [0, 1]; NaN for a token without, None where
    the engine cannot look inside."""

    def __post_init__(self) -> None:
        arrays = (self.logprob, self.margin, self.entropy, self.feasible_mass, self.forced, self.span)
        lengths = {len(array) for array in arrays}
        if self.layer_agreement is not None:
            lengths.add(len(self.layer_agreement))
        if len(lengths) != 1:
            raise ValueError(f"signal arrays differ in length: {sorted(lengths)}")

    def __len__(self) -> int:
        return len(self.logprob)

    def first(self, count: int) -> TokenSignals:
        """The signals of the first `count` tokens."""
        return TokenSignals(
            logprob=self.logprob[:count],
            margin=self.margin[:count],
            entropy=self.entropy[:count],
            feasible_mass=self.feasible_mass[:count],
            forced=self.forced[:count],
            span=self.span[:count],
            layer_agreement=None if self.layer_agreement is None else self.layer_agreement[:count],
        )

    def until_plan(self) -> TokenSignals:
        """The signals that stood when the plan did: up to its last token."""
        in_plan = np.flatnonzero(self.span == Span.PLAN)
        return self.first(int(in_plan[-1]) + 1 if len(in_plan) else 0)


@dataclass(frozen=True, slots=True)
class Draft:
    """A whole draft of the small model. `signals` is None where an engine gives none (say so; never invent zeros)."""

    outcome: Outcome
    calls: tuple[DraftCall, ...] = ()
    text: str = ""
    complete: bool = True
    """False where decoding ended on a length or time limit."""
    signals: TokenSignals | None = None
    plan: tuple[str, ...] = ()
    hidden: FloatArray | None = None
    """Projected hidden states, shape (len(HiddenPlace), HIDDEN_SIZE); a row of NaN where the draft has no such place,
    None where the engine cannot look inside."""

    def at_plan(self) -> Draft:
        """Return what was known when the plan stood: its outcome and tools, and the signals up to its last token."""
        cut = self.outcome is Outcome.UNPARSABLE and bool(self.plan)
        signals = None if self.signals is None else self.signals.until_plan()
        return Draft(Outcome.CALLS if cut else self.outcome, complete=False, signals=signals, plan=self.plan)


@dataclass(frozen=True, slots=True)
class Verdict:
    """One judgement. `score` is the policy's own scale, higher is safer; `threshold` is what it was held against."""

    action: Action
    stage: Stage
    reason: str
    """A stable, machine-readable word such as `accepted`, `invalid_call`, `low_confidence`."""
    score: float | None = None
    threshold: float | None = None
    findings: tuple[str, ...] = field(default=())
    """Human-readable findings, bounded in number and length; never contain argument values."""
    propensity: float = 1.0
    """Probability of this verdict over the policy's own draws, given request and draft; 1 where it draws none."""
    probability: float | None = None
    """Calibrated probability that the draft is right, where the policy's judge gives one; in [0, 1]."""
    certificate: str | None = None
    """Id of the certificate that covers this verdict; None where none is in force."""


class Policy(Protocol):
    """A judge of drafts. Implementations are immutable and safe to share between requests."""

    @property
    def name(self) -> str:
        """A stable name for the ledger, including its thresholds where it has some."""

    def before(self, request: Request) -> Verdict:
        """Judge a request before anything is decoded: ESCALATE or CONTINUE."""

    def during(self, request: Request, draft: Draft) -> Verdict:
        """Judge when the plan stands and no argument is spent: ESCALATE or CONTINUE. `draft`: see `Draft.at_plan`."""

    def after(self, request: Request, draft: Draft) -> Verdict:
        """Judge the whole draft: ANSWER or ESCALATE."""
