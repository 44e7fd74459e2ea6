"""The inputs of the cascade study: small traces in; sets, large models and training sources out.

A trace need not say which set it is of: cases are found by their ids. BFCL's cases with recorded answers stand before
the recorded models; its live cases, the in-domain test and the held-out tools have no recorded large model, and stand
before simulated ones. Rows that no recipe trained on fit the cold start: `validation` for the in-domain test, with the
in-domain test itself for held-out tools, with both for BFCL.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from evaluation.cases.case import Case, data_hash
from evaluation.cases.splits import by_conversation
from evaluation.cases.study_data import StudyData
from evaluation.recorded.models import GPT_4O, RecordedModel, trace_of
from evaluation.recorded.simulated import TokenRates, simulated_large
from evaluation.replay.classifier_scorer import ClassifierJudges
from evaluation.replay.prompt_routers import matrix_factorisation, prompt_logistic
from evaluation.replay.scorers import TrainableJudge, of_signals, oracle, random_mix, schema_valid
from evaluation.studies.cascade.study import Target
from evaluation.traces.table import Trace, TraceError, TraceInfo, TraceRow

SOURCES: Mapping[str, Sequence[str]] = {
    "bfcl": ("validation", "in_domain", "heldout_tools"),
    "bfcl_live": ("validation", "in_domain", "heldout_tools"),
    "heldout_tools": ("validation", "in_domain"),
    "in_domain": ("validation",),
}
"""Set → the sets of training sources that a cold start on it may be fitted on."""


@dataclass(frozen=True, slots=True)
class Material:
    """Everything that `tables_of` takes."""

    small: Trace
    targets: Sequence[Target]
    sources: Mapping[str, Sequence[Case]]
    sources_large: Trace | None
    asked: Mapping[str, int]
    """Set → how many of its cases stand in the small traces."""
    assumptions: Sequence[str]
    missing: Sequence[str] = field(default=())


def material_of(
    traces: Sequence[Trace],
    models: Sequence[RecordedModel],
    case_set: Callable[[str], Sequence[Case]],
    data: StudyData,
    *,
    qualities: Sequence[float],
    command: str,
) -> Material:
    """Find the traces' cases and stand large models beside them.

    Args:
        case_set: cases of a set by its name, as `evaluation.cases.sets.case_set`.
        qualities: pass rates of the simulated large models.

    Raises:
        TraceError: a case stands in two traces.
    """
    small = merged(traces, command)
    ids = {row.case_id for row in small.rows}
    bfcl = case_set("bfcl")
    recorded = {answer.id for answer in data.recording(GPT_4O.recording)}
    sets = {
        "bfcl": [case for case in bfcl if case.id in ids and case.id in recorded],
        "bfcl_live": [case for case in bfcl if case.id in ids and case.category.startswith("live_")],
    }
    for name in ("in_domain", "heldout_tools", "validation"):
        sets[name] = [case for case in case_set(name) if case.id in ids]
    rates = TokenRates.of(bfcl, data.recording(GPT_4O.recording))

    def simulated(cases: Sequence[Case], quality: float) -> Trace:
        return simulated_large(cases, pass_rate=quality, rates=rates, prices=GPT_4O.prices)

    targets = []
    if sets["bfcl"]:
        targets = [
            Target("bfcl", sets["bfcl"], trace_of(model, sets["bfcl"], data, command=command)) for model in models
        ]
    for name in ("in_domain", "heldout_tools", "bfcl_live"):
        by = {"by": (by_conversation,)} if name == "in_domain" else {}
        for quality in qualities if sets[name] else ():
            targets.append(Target(name, sets[name], simulated(sets[name], quality), simulated=True, **by))
    sources = {name: [case for source in given for case in sets[source]] for name, given in SOURCES.items()}
    pool = sources["bfcl"]
    return Material(
        small=small,
        targets=targets,
        sources=sources,
        sources_large=simulated(pool, qualities[0]) if pool else None,
        asked={name: len(cases) for name, cases in sets.items()},
        assumptions=[*_assumptions(models), _simulation(rates, qualities)],
        missing=[f"{name}: no trace holds a case of it" for name, cases in sets.items() if not cases],
    )


def merged(traces: Sequence[Trace], command: str) -> Trace:
    """One trace of all rows. Raises TraceError where there is no row, or a case stands in two traces."""
    rows: dict[str, TraceRow] = {}
    for trace in traces:
        for row in trace.rows:
            if row.case_id in rows:
                raise TraceError(f"case {row.case_id!r} stands in two traces of the small arm")
            rows[row.case_id] = row
    if not rows:
        raise TraceError("no row in the small arm's traces")
    arms = list(dict.fromkeys(trace.info.arm for trace in traces))
    return Trace(TraceInfo(arm=" + ".join(arms), command=command, data_sha256=data_hash(())), list(rows.values()))


def _assumptions(models: Sequence[RecordedModel]) -> list[str]:
    prices = [
        f"{model.name} {model.prices.input_usd_per_mtok:g}/{model.prices.output_usd_per_mtok:g}" for model in models
    ]
    return [
        "Large models: answers and tokens as recorded in August 2024, list prices in USD per million tokens in/out, "
        f"uncached: {', '.join(prices)}.",
        *(f"{model.assumption}." for model in models if model.assumption),
    ]


def _simulation(rates: TokenRates, qualities: Sequence[float]) -> str:
    shown = ", ".join(f"{quality:.0%}" for quality in qualities)
    return (
        f"Simulated large models are right in {shown} of requests, drawn by hash of the case, and cost GPT-4o's price "
        f"for an answer of the gold: a token for every {rates.input_chars:.2f} characters of messages and tools, one "
        f"for every {rates.output_chars:.2f} of the calls, {rates.no_call_tokens:.0f} for an answer without a "
        "call; the three are ratios of GPT-4o's recordings on BFCL."
    )


def study_judges() -> list[TrainableJudge]:
    """Ours is the fitted classifier; the others are what rivals decide by, or need no fit.

    Who serves drafts without a call saves more by that alone: both sides stand in the tables with and without.
    """
    return [
        random_mix(),
        prompt_logistic(),
        matrix_factorisation(),
        schema_valid(),
        of_signals("mean_logprob", "mean log-prob"),
        of_signals("mean_logprob", "mean log-prob, no-call served", serve_silent=True, key="mean_logprob_silent"),
        of_signals("weakest_token", "weakest token"),
        of_signals("weakest_token", "weakest token, no-call served", serve_silent=True, key="weakest_token_silent"),
        *ClassifierJudges().judges(),
        oracle(),
    ]
