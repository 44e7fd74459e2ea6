"""Every judge of the cascade study, in the order of its tables."""

from __future__ import annotations

from evaluation.classifier_judge import ClassifierJudges
from evaluation.judges import Judge, of_signals, oracle, random_mix, schema_valid
from evaluation.prompt_routers import matrix_factorisation, prompt_logistic


def study_judges() -> list[Judge]:
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
