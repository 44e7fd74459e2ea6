"""Turns what was tuned into the manifest of a bundle.

Where a trace does not say what its drafts were made with, the bundle gets no certificate: there would be nothing to
hold it against.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evaluation.traces.small_side import Serving
from evaluation.tuning.by_stage import NONE, StagedTuning
from evaluation.tuning.by_tool_class import ClassTuning
from evaluation.tuning.rows import Operating, TuningRows, calibration_of, prices_of
from evaluation.tuning.tune import Tuning
from policies.bundle.manifest import (
    Budget,
    Classes,
    Expected,
    GainRule,
    GateEntry,
    JudgeSpec,
    MadeFor,
    Manifest,
    OneClass,
    PolicySpec,
    ScoreEntry,
    ServingPrices,
    Shown,
    Stages,
    Threshold,
)
from policies.rules.certificate import Certificate
from policies.texts import tool_sha256


@dataclass(frozen=True, slots=True)
class Money:
    """Settings that make a certified threshold the floor of a policy that weighs money; one of them at most."""

    usd_per_hour: float | None = None
    pass_per_usd: float = 0.0
    pass_per_second: float = 0.0

    @property
    def given(self) -> bool:
        """True if money is weighed at all."""
        return self.usd_per_hour is not None or self.pass_per_usd > 0 or self.pass_per_second > 0


@dataclass(frozen=True, slots=True)
class Origin:
    """The fields that every bundle of one run shares."""

    judge: JudgeSpec
    serving: Serving | None
    large_model: str | None
    """As the gateway names it; None: the certificate holds for any."""
    small_usd_per_hour: float
    made_by: str


def threshold_manifest(tuning: Tuning, origin: Origin, money: Money) -> Manifest:
    """A single threshold, or a policy that weighs money and has it as its floor."""
    at, certificate = tuning.chosen.operating, tuning.chosen.certificate
    shown = None if certificate is None else _shown(certificate, tuning.certifying)
    shown = shown if origin.serving is not None else None
    given = shown.id if shown is not None else None
    spec: PolicySpec = Threshold(threshold=at.threshold, certificate=given)
    if money.usd_per_hour is not None:
        spec = Budget(floor=at.threshold, usd_per_hour=money.usd_per_hour, certificate=given)
    elif money.given:
        spec = GainRule(
            floor=at.threshold,
            pass_per_usd=money.pass_per_usd,
            pass_per_second=money.pass_per_second,
            certificate=given,
        )
    # What a price does on the rows is not what the floor alone does: nothing is claimed of it.
    expected = None if money.given else _expected(at, tuning.holdout)
    return _manifest(origin, spec, [shown], tuning.selection, expected, None)


def class_manifest(classes: ClassTuning, tuning: Tuning, origin: Origin) -> Manifest:
    """Thresholds by tool class, bound to the tools that the certifying rows offered."""
    made, certificates = [], []
    for one in classes.classes:
        shown = None
        if one.certificate is not None and origin.serving is not None:
            # Which rows of the selection part are the class's follows from its pattern.
            shown = _shown(one.certificate, tuning.selection, scope=one.pattern)
            certificates.append(shown)
        made.append(
            OneClass(
                pattern=one.pattern,
                alpha=one.alpha,
                threshold=one.certificate.threshold if one.certificate else None,
                certificate=shown.id if shown else None,
            )
        )
    expected = _expected(classes.together, tuning.holdout)
    tools = _tools(tuning.selection)
    return _manifest(origin, Classes(classes=made), certificates, tuning.selection, expected, tools)


def staged_manifest(staged: StagedTuning, origin: Origin, request_judge: JudgeSpec, plan_judge: JudgeSpec) -> Manifest:
    """All stages where they pay, else the single threshold."""
    chosen, certificate, at = staged.single, staged.single_certificate, staged.single_operating
    if staged.pays:
        chosen, certificate, at = staged.staged, staged.staged_certificate, staged.staged_operating
    shown = None
    if certificate is not None and origin.serving is not None:
        shown = _shown(certificate, staged.certifying, kind="joint")
    given = shown.id if shown is not None else None
    threshold = chosen.draft if chosen is not None else None
    spec: PolicySpec = Threshold(threshold=threshold, certificate=given)
    if chosen is not None and chosen.gated:
        request = GateEntry(judge=request_judge, threshold=chosen.request) if chosen.request > NONE else None
        plan = GateEntry(judge=plan_judge, threshold=chosen.plan) if chosen.plan > NONE else None
        spec = Stages(threshold=threshold, request_gate=request, plan_gate=plan, certificate=given)
    expected = None if at is None else _expected(at, staged.holdout)
    return _manifest(origin, spec, [shown], staged.certifying, expected, None)


def serves_small(policy: PolicySpec) -> bool:
    """Whether any draft can be served by it: where nothing could be chosen or certified, none can."""
    match policy:
        case Classes():
            return any(one.threshold is not None for one in policy.classes)
        case Budget() | GainRule():
            return policy.floor is not None
        case _:
            return policy.threshold is not None


def _manifest(
    origin: Origin,
    policy: PolicySpec,
    certificates: Sequence[Shown | None],
    selection: TuningRows,
    expected: Expected | None,
    tools: Mapping[str, str] | None,
) -> Manifest:
    judge = origin.judge
    if isinstance(judge, ScoreEntry):
        judge = ScoreEntry(score=judge.score, calibration=list(calibration_of(selection)))
    made_for: MadeFor | None = None
    if origin.serving is not None:
        made_for = origin.serving.made_for(origin.large_model, None if tools is None else dict(tools))
    prices: ServingPrices = prices_of(selection, origin.small_usd_per_hour)
    return Manifest(
        judge=judge,
        policy=policy,
        certificates=[shown for shown in certificates if shown is not None],
        made_for=made_for,
        prices=prices,
        expected=expected,
        made_by=origin.made_by[:2000],
    )


def _shown(certificate: Certificate, rows: TuningRows, *, scope: str = "*", kind: str | None = None) -> Shown:
    return Shown(
        kind=kind or certificate.kind,  # type: ignore[arg-type]  # one of the three
        scope=scope,
        alpha=certificate.alpha,
        delta=certificate.delta,
        threshold=certificate.threshold,
        rows=certificate.rows,
        accepted=certificate.accepted,
        errors=certificate.errors,
        bound=certificate.bound,
        data_sha256=rows.data_sha256(),
    )


def _expected(at: Operating, holdout: TuningRows) -> Expected:
    return Expected(
        rows=len(holdout),
        share_small=at.share_small,
        pass_rate=at.passed.value or 0.0,
        large_pass_rate=at.large_passed,
        cost_ratio=at.cost,
        harm=at.harmed.value or 0.0,
        latency_s=at.latency_s,
    )


def _tools(rows: TuningRows) -> dict[str, str]:
    """Tools by name; a name that stood for several tools stands for none."""
    found: dict[str, str | None] = {}
    for request in rows.arms.requests:
        for tool in request.tools:
            digest = tool_sha256(tool)
            found[tool.name] = digest if found.get(tool.name, digest) == digest else None
    return {name: digest for name, digest in found.items() if digest is not None}
