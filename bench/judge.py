"""Measures the cost of judging one draft: signals and score, on real requests, beside scikit-learn's predict_proba on
the vector.

Drafts are BFCL's gold calls with drawn token signals; the judge is fitted on drawn vectors (`--judge` takes a real
one). CPU time of one thread, so that a busy machine changes little; the ratio is taken in one run. `make bench-judge`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from evaluation.cases.case import CallsGold, Case
from evaluation.cases.sets import case_set, sample
from evaluation.traces.table import request_of
from policies.classifier.classifier import Classifier
from policies.classifier.dataset import FeatureTable
from policies.classifier.estimator import load_estimator, save_estimator
from policies.classifier.fit import fit_and_check
from policies.features.catalog import COLUMN, FEATURES, LEARNED
from policies.types import HIDDEN_SIZE, Draft, DraftCall, HiddenPlace, Outcome, Request, Span, TokenSignals
from policies.validation import check

LIMIT_MS = 2.0
TOKENS = 60
"""Tokens of a drawn draft; a call of BFCL has about 45."""
FIT_ROWS = 2_000
PER_GROUP = 20
REPEATS = 5


def drawn_judge(folder: Path, rng: np.random.Generator) -> Classifier:
    """A judge of boosted trees fitted on drawn vectors; written to a folder with its scikit-learn model."""
    vectors = rng.normal(size=(FIT_ROWS, len(FEATURES))).astype(np.float32)
    for name in LEARNED:
        vectors[:, COLUMN[name]] = np.nan
    hidden = rng.normal(size=(FIT_ROWS, len(HiddenPlace), HIDDEN_SIZE)).astype(np.float32)
    passed = vectors[:, COLUMN["value_logprob_min"]] + hidden[:, 1, 0] + rng.normal(size=FIT_ROWS) > 0
    tools = [(f"t{row % 200}",) for row in range(FIT_ROWS)]
    names = [f"c{row}" for row in range(FIT_ROWS)]
    fitted = fit_and_check(FeatureTable(vectors, hidden, tools, tools, passed, names, ["k"] * FIT_ROWS), seed=0)
    fitted.classifier.save(folder)
    save_estimator(fitted.estimator, folder)
    return fitted.classifier


def drawn_draft(case: Case, rng: np.random.Generator) -> Draft:
    """The gold calls, or no call, with drawn signals."""
    calls = []
    if isinstance(case.gold, CallsGold):
        for call in case.gold.calls:
            given = {key: values[0] for key, values in call.arguments.items() if "" not in values}
            calls.append(DraftCall(call.name, json.dumps(given)))
    spans = np.repeat([int(span) for span in (Span.SYNTAX, Span.PLAN, Span.NAME, Span.KEY, Span.VALUE)], TOKENS // 5)
    n = len(spans)
    signals = TokenSignals(
        logprob=-rng.exponential(0.3, n).astype(np.float32),
        margin=rng.random(n).astype(np.float32),
        entropy=rng.random(n).astype(np.float32),
        feasible_mass=rng.uniform(0.5, 1, n).astype(np.float32),
        forced=rng.random(n) < 0.4,
        span=spans.astype(np.uint8),
        layer_agreement=rng.random(n).astype(np.float32),
    )
    hidden = rng.normal(size=(len(HiddenPlace), HIDDEN_SIZE)).astype(np.float32)
    outcome = Outcome.CALLS if calls else Outcome.NO_CALL
    return Draft(outcome, tuple(calls), signals=signals, plan=tuple(call.name for call in calls), hidden=hidden)


def milliseconds(work: Callable[[Any], object], items: Sequence[Any]) -> np.ndarray:
    """CPU milliseconds of each item, the least of some repeats, after one round to warm caches."""
    for item in items:
        work(item)
    best = np.full(len(items), np.inf)
    for _ in range(REPEATS):
        for place, item in enumerate(items):
            began = time.process_time_ns()
            work(item)
            best[place] = min(best[place], (time.process_time_ns() - began) / 1e6)
    return best


def measure(judge: Classifier, estimator: Any, cases: Sequence[Case], rng: np.random.Generator) -> dict[str, Any]:
    """Figures in milliseconds of CPU a draft."""
    drafts = [(request_of(case), drawn_draft(case, rng)) for case in cases]
    columns = [COLUMN[name] for name in judge.names]
    vectors = [judge.vector(request, draft) for request, draft in drafts]
    inputs = [vector[columns].astype(np.float64)[None] for vector in vectors]

    def judged(pair: tuple[Request, Draft]) -> None:
        judge.probability(judge.score(judge.vector(*pair)))

    whole = milliseconds(judged, drafts)
    parts = {
        "validity": milliseconds(lambda pair: check(*pair), drafts),
        "signals": milliseconds(lambda pair: judge.vector(*pair), drafts),
        "score": milliseconds(judge.score, vectors),
        "explain": milliseconds(judge.explain, vectors),
        "predict_proba": milliseconds(estimator.predict_proba, inputs),
    }
    return {
        "drafts": len(drafts),
        "model": type(judge.model).__name__.lower(),
        "signals and score, median ms": float(np.median(whole)),
        "signals and score, 95 % ms": float(np.quantile(whole, 0.95)),
        "signals and score, most ms": float(whole.max()),
        **{f"{name}, median ms": float(np.median(found)) for name, found in parts.items()},
        "predict_proba over score": float(np.median(parts["predict_proba"]) / np.median(parts["score"])),
    }


def main(argv: list[str] | None = None) -> int:
    """Print the figures; 1 where judging a draft takes more than LIMIT_MS at the 95 % quantile."""
    parser = argparse.ArgumentParser(prog="python -m bench.judge", description=__doc__.partition("\n")[0])
    parser.add_argument("--judge", type=Path, help="a folder of `smallcall fit`")
    arguments = parser.parse_args(argv)
    rng = np.random.default_rng(0)
    cases = sample("bfcl", case_set("bfcl"), PER_GROUP)
    with threadpool_limits(1), tempfile.TemporaryDirectory() as made:
        folder = arguments.judge or Path(made)
        judge = Classifier.load(folder) if arguments.judge else drawn_judge(folder, rng)
        found = measure(judge, load_estimator(folder), cases, rng)
    for name, value in found.items():
        print(f"{name:32} {value:.3f}" if isinstance(value, float) else f"{name:32} {value}")
    slow = found["signals and score, 95 % ms"] > LIMIT_MS
    print(f"limit {LIMIT_MS} ms at the 95 % quantile: {'missed' if slow else 'kept'}")
    return int(slow)


if __name__ == "__main__":
    sys.exit(main())
