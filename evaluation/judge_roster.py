"""Every judge of the cascade study, in the order of its tables."""

from __future__ import annotations

from evaluation.judges import Judge, of_signals, oracle, random_mix, schema_valid
from evaluation.prompt_routers import matrix_factorisation, prompt_logistic


def study_judges() -> list[Judge]:
    """The shipped score stands as ours; the others are what rivals decide by."""
    return [
        random_mix(),
        prompt_logistic(),
        matrix_factorisation(),
        schema_valid(),
        of_signals("mean_logprob", "mean log-prob"),
        of_signals("weakest_token", "weakest token"),
        of_signals("mean_logprob", "mean log-prob, no-call served", serve_silent=True, key="mean_logprob_silent"),
        of_signals("mean_semantic", "mean of deciding tokens", ours=True),
        of_signals(
            "mean_semantic",
            "mean of deciding tokens, no-call served",
            ours=True,
            serve_silent=True,
            key="mean_semantic_silent",
        ),
        oracle(),
    ]
