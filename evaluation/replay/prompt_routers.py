"""Routers that see only the request: they choose a model before anything is drafted, and nothing is checked after.

What they send to the small model is served as it comes, and what they send to the large one costs no draft: so they are
charged in every figure (`Score.routes`).
"""

from __future__ import annotations

from collections.abc import Sequence

from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import Normalizer

from evaluation.cases.case import Case
from evaluation.replay.plans import Score
from evaluation.replay.scorers import CannotJudge, Part, Scorer, TrainableJudge, two_classes
from policies.types import BoolArray

MAX_CHARS = 20_000
"""Characters of a request's text that a router reads."""
MAX_DIMENSIONS = 64


def prompt_logistic() -> TrainableJudge:
    """P(the small model passes) by logistic regression on word n-grams of conversation and tools."""
    label = "prompt-only logistic"

    def fit(part: Part) -> Scorer:
        passed = part.arms.small_pass
        two_classes(passed, label)
        model = make_pipeline(_ngrams(), LogisticRegression(max_iter=2000))
        _fit(model, [_request_text(case) for case in part.arms.cases], passed, label)

        def scores(other: Part) -> Score:
            p = model.predict_proba([_request_text(case) for case in other.arms.cases])[:, 1]
            return Score("prompt_logistic", label, p, probability=p, routes=True)

        return scores

    return TrainableJudge("prompt_logistic", label, fit)


def matrix_factorisation() -> TrainableJudge:
    """RouteLLM's matrix factorisation (arXiv 2406.18665) on embeddings of the last user message.

    RouteLLM scores a model m on a prompt q by δ(m, q) = w₂ᵀ(v_m ⊙ (W₁ᵀ v_q + b)) and sends the prompt to the large
    model with probability σ(δ(large, q) − δ(small, q)) of a win. For **two** models the difference is a linear function
    of v_q, and every linear function can be so written: the same scores are fitted here by logistic regression, which
    is convex. The label is "only the large model passes". The embedding is a latent semantic analysis of TF-IDF,
    since RouteLLM's own asks OpenAI for one.
    """
    label = "RouteLLM-style matrix factorisation"

    def fit(part: Part) -> Scorer:
        wins = part.arms.large_pass & ~part.arms.small_pass
        two_classes(wins, label)
        texts = [_last_user_text(case) for case in part.arms.cases]
        grams = _ngrams()
        try:
            counted = grams.fit_transform(texts)
        except ValueError as error:  # no word occurs twice
            raise CannotJudge(f"{label}: {error}") from error
        dimensions = min(MAX_DIMENSIONS, counted.shape[1] - 1, len(texts) - 1)
        if dimensions < 1 or not (counted.max(axis=0) - counted.min(axis=0)).nnz:
            raise CannotJudge(f"{label}: too few words to embed")
        reduce = TruncatedSVD(dimensions, random_state=0)
        model = make_pipeline(grams, reduce, Normalizer(), LogisticRegression(max_iter=2000))
        _fit(model, texts, wins, label)

        def scores(other: Part) -> Score:
            won = model.predict_proba([_last_user_text(case) for case in other.arms.cases])[:, 1]
            return Score("prompt_mf", label, 1.0 - won, routes=True)

        return scores

    return TrainableJudge("prompt_mf", label, fit, needs_large=True)


def _ngrams() -> TfidfVectorizer:
    return TfidfVectorizer(ngram_range=(1, 2), min_df=2, max_features=20_000, sublinear_tf=True)


def _fit(model: Pipeline, texts: Sequence[str], labels: BoolArray, judge: str) -> None:
    try:
        model.fit(texts, labels)
    except ValueError as error:  # no word occurs twice
        raise CannotJudge(f"{judge}: {error}") from error


def _request_text(case: Case) -> str:
    tools = [tool["function"] for tool in case.tools]
    said = [str(message.get("content") or "") for message in case.messages]
    offered = [f"{tool['name'].replace('_', ' ')} {tool.get('description') or ''}" for tool in tools]
    return "\n".join([*said, *offered])[:MAX_CHARS]


def _last_user_text(case: Case) -> str:
    for message in reversed(case.messages):
        if message.get("role") == "user":
            return str(message.get("content") or "")[:MAX_CHARS]
    return ""
