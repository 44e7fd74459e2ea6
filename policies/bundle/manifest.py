"""The structure of a bundle's `bundle.json`. Unknown keys are errors; every limit is checked where it is read."""

from __future__ import annotations

import hashlib
import math
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

Rate = Annotated[float, Meta(ge=0.0, le=1.0)]
Text = Annotated[str, Meta(max_length=256)]
Digest = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
OnOther = Literal["escalate", "answer"]


class ScoreEntry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="score"):
    """`policies.rules.judge.NamedScore`."""

    score: Text
    calibration: Annotated[list[tuple[float, float]], Meta(max_length=256)] = []


class ClassifierEntry(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="classifier"
):
    """`policies.classifier.classifier`, kept in a folder of the bundle."""

    folder: Annotated[str, Meta(pattern="^[a-z_]{1,32}$")] = "classifier"
    features_version: int


class ToolsJudge(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="few_tools"):
    """`policies.rules.judge.FewTools`."""


JudgeSpec = ScoreEntry | ClassifierEntry | ToolsJudge


class GateEntry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`policies.rules.thresholds.StageGate`."""

    judge: JudgeSpec
    threshold: float


class Threshold(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="threshold"):
    """`policies.rules.thresholds.ThresholdPolicy`."""

    threshold: float | None
    certificate: Text | None = None


class Stages(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="staged"):
    """`policies.rules.thresholds.StagedPolicy`."""

    threshold: float | None
    request_gate: GateEntry | None = None
    plan_gate: GateEntry | None = None
    certificate: Text | None = None


class OneClass(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`policies.rules.tool_classes.ToolClass`."""

    pattern: Text
    alpha: Rate
    threshold: float | None
    certificate: Text | None = None


class Classes(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="classes"):
    """`policies.rules.tool_classes.PerToolClass`."""

    classes: Annotated[list[OneClass], Meta(min_length=1, max_length=64)]


class GainRule(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="gain"):
    """`policies.rules.price_aware.Gain`."""

    floor: float | None
    pass_per_usd: Annotated[float, Meta(ge=0.0)] = 0.0
    pass_per_second: Annotated[float, Meta(ge=0.0)] = 0.0
    certificate: Text | None = None


class Budget(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="budget"):
    """`policies.rules.price_aware.Budgeted`."""

    floor: float | None
    usd_per_hour: Annotated[float, Meta(gt=0.0)]
    certificate: Text | None = None


PolicySpec = Threshold | Stages | Classes | GainRule | Budget


class Shown(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A certificate: what was shown, on what, with which confidence (`policies.rules.certificate`)."""

    kind: Literal["harm", "risk", "joint"]
    """A: harmed requests over all. B: wrong ones over the accepted. C: harm of several thresholds chosen together."""
    scope: Text = "*"
    """The pattern of the tool class that it holds for; `*` alone in a bundle: all requests."""
    alpha: Annotated[float, Meta(gt=0.0, lt=1.0)]
    delta: Annotated[float, Meta(gt=0.0, lt=1.0)]
    """Error probability of this certificate: where several hold together, its share."""
    threshold: float
    rows: Annotated[int, Meta(ge=1)]
    accepted: Annotated[int, Meta(ge=0)]
    errors: Annotated[int, Meta(ge=0)]
    bound: Rate
    data_sha256: Digest
    """Over the ids of the certifying cases, what each model did there, and their scores."""

    @property
    def id(self) -> str:
        """16 hexadecimal digits of the certificate's content."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:16]

    def sentence(self) -> str:
        """Return the certificate as one sentence."""
        of = {"harm": "of all requests are made worse", "joint": "of all requests are made worse"}
        promise = of.get(self.kind, "of the answers accepted small are wrong")
        where = "" if self.scope == "*" else f" among calls of {self.scope}"
        counted = f"{self.errors} of {self.rows}" if self.kind != "risk" else f"{self.errors} of {self.accepted}"
        return f"with {1 - self.delta:.4g} confidence, at most {self.alpha:.2%} {promise}{where} ({counted})"


class MadeFor(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The models and settings that drafts were made with and held against: a certificate holds for nothing else.

    None where the traces do not say: such a bundle can carry no certificate.
    """

    weights_sha256: Text
    adapter_sha256: Text | None
    pattern_version: Text
    dtype: Text
    grammar: bool
    large_model: Text | None
    """None: any, because harm was counted wherever the small model was wrong."""
    tools: Annotated[dict[str, Digest], Meta(max_length=20_000)] | None = None
    """Name → `policies.texts.tool_sha256` of the definition, where the policy goes by tool; None where it does not."""


class ServingPrices(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Prices paid on the traces, and what a request to the large model is estimated to cost."""

    usd_per_character: Annotated[float, Meta(ge=0.0)]
    usd_of_answer: Annotated[float, Meta(ge=0.0)]
    usd_a_request: Annotated[float, Meta(gt=0.0)]
    """The mean."""
    latency_s: Annotated[float, Meta(ge=0.0)]
    small_usd_per_hour: Annotated[float, Meta(ge=0.0)]
    large_passes: dict[Literal["single", "parallel", "no_call", "ask"], Rate]
    """The large model's pass rate by what the draft is, smoothed."""


class Expected(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Figures of the policy on rows that had no part in choosing it."""

    rows: int
    share_small: Rate
    pass_rate: Rate
    large_pass_rate: Rate
    cost_ratio: float
    """Over always-large."""
    harm: Rate
    latency_s: float | None
    """Mean; None where the traces do not have it."""


class KeptFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One further file of the bundle."""

    sha256: Digest
    size_bytes: Annotated[int, Meta(ge=0)]


class Manifest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`bundle.json`."""

    format: Literal[1] = 1
    judge: JudgeSpec
    policy: PolicySpec
    on_no_call: OnOther = "escalate"
    on_ask: OnOther = "escalate"
    certificates: Annotated[list[Shown], Meta(max_length=64)] = []
    made_for: MadeFor | None = None
    prices: ServingPrices | None = None
    expected: Expected | None = None
    made_by: Annotated[str, Meta(max_length=2000)] = ""
    """The command."""
    files: Annotated[dict[str, KeptFile], Meta(max_length=64)] = {}
    """Relative path → file."""

    def judges(self) -> list[JudgeSpec]:
        """The judge, and those of the gates."""
        gates = [self.policy.request_gate, self.policy.plan_gate] if isinstance(self.policy, Stages) else []
        return [self.judge, *(gate.judge for gate in gates if gate is not None)]

    def problems(self) -> list[str]:
        """Return what does not fit together, by field; empty where all does."""
        found = []
        known = {shown.id for shown in self.certificates}
        named = (
            [one.certificate for one in self.policy.classes]
            if isinstance(self.policy, Classes)
            else [self.policy.certificate]
        )
        if any(one is not None and one not in known for one in named):
            found.append("policy.certificate: no certificate of the bundle has this id")
        if self.certificates and self.made_for is None:
            found.append("made_for: a certificate needs it")
        if isinstance(self.policy, GainRule | Budget) and self.prices is None:
            found.append(
                f"prices: a policy of kind {'gain' if isinstance(self.policy, GainRule) else 'budget'} needs them"
            )
        if self.prices is not None and len(self.prices.large_passes) != 4:
            found.append("prices.large_passes: must say single, parallel, no_call and ask")
        if not all(map(math.isfinite, _thresholds(self.policy))):
            found.append("policy: a threshold is not a finite number")
        return found


def _thresholds(policy: PolicySpec) -> list[float]:
    match policy:
        case Classes():
            values = [one.threshold for one in policy.classes]
        case Stages():
            gates = [gate for gate in (policy.request_gate, policy.plan_gate) if gate is not None]
            values = [policy.threshold, *(gate.threshold for gate in gates)]
        case Threshold():
            values = [policy.threshold]
        case _:
            values = [policy.floor]
    return [value for value in values if value is not None]
