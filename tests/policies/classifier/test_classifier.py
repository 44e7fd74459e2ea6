"""The judge in plain arrays: equal to scikit-learn's, monotone, kept on disk without pickle, refused where wrong."""

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skops.io
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from policies.classifier.calibration import Isotonic, Sigmoid, VennAbers
from policies.classifier.classifier import Classifier, ClassifierError
from policies.classifier.estimator import (
    FEW_ROWS,
    FILE,
    EstimatorError,
    exported,
    fresh,
    load_estimator,
    save_estimator,
)
from policies.classifier.fit import calibrate, venn_abers
from policies.features.catalog import COLUMN, FEATURE_LIST, FEATURES
from policies.features.probe import Probe
from policies.features.vector import Context, ToolRecord
from policies.types import HIDDEN_SIZE, HiddenPlace
from tests.policies.classifier.judged import made_table

F = len(FEATURES)
numbers = st.floats(-50, 50, width=32) | st.just(float("nan"))
vectors = arrays(np.float32, (4, F), elements=numbers, fill=st.just(float("nan")))


def estimator_of(rows: int) -> Any:
    table = made_table(rows)
    vectors = np.where(np.isnan(table.vectors).all(axis=0), np.arange(rows)[:, None] % 7, table.vectors)
    return fresh(rows, FEATURES, 0).fit(vectors.astype(np.float64), table.passed)


def judge_of(estimator: Any) -> Classifier:
    table = made_table(300)
    raw = np.linspace(0.01, 0.99, 300)
    size = len(HiddenPlace) * HIDDEN_SIZE
    medians = np.zeros(F)
    medians[COLUMN["probe"]] = np.nan
    return Classifier(
        model=exported(estimator),
        calibration=calibrate(raw, table.passed | (raw > 0.7)),
        bounds=venn_abers(raw, table.passed | (raw > 0.7)),
        context=Context(
            frozenset({"a", "b"}), {"a": ToolRecord(0.5, 3)}, Probe(np.zeros(size), np.ones(size), np.ones(size), 0.25)
        ),
        names=FEATURES,
        medians=medians,
        rows=300,
    )


@pytest.fixture(scope="module", params=[FEW_ROWS, 200], ids=["trees", "linear"])
def estimator(request: pytest.FixtureRequest) -> Any:
    return estimator_of(request.param)


@settings(max_examples=25, deadline=None)
@given(drafts=vectors)
def test_scores_are_those_of_scikit_learn(estimator: Any, drafts: np.ndarray) -> None:
    """Whatever is missing, for both models."""
    judge = judge_of(estimator)
    expected = estimator.predict_proba(drafts.astype(np.float64))[:, 1]
    np.testing.assert_allclose(judge.scores(drafts), expected, rtol=1e-9, atol=1e-12)
    assert judge.score(drafts[0]) == pytest.approx(expected[0], rel=1e-9)


@settings(max_examples=25, deadline=None)
@given(
    drafts=vectors, column=st.sampled_from([c for c, f in enumerate(FEATURE_LIST) if f.direction]), up=st.floats(0, 9)
)
def test_trees_never_move_against_the_declared_sign(
    trees: Classifier, drafts: np.ndarray, column: int, up: float
) -> None:
    """A value that rises moves the score the way that is declared for it, or not at all."""
    raised = drafts.copy()
    raised[:, column] += np.float32(up)
    moved = (trees.scores(raised) - trees.scores(drafts)) * FEATURE_LIST[column].direction
    assert (moved >= -1e-12).all()


@pytest.fixture(scope="module")
def trees() -> Classifier:
    return judge_of(estimator_of(FEW_ROWS))


@pytest.fixture(scope="module")
def linear() -> Classifier:
    return judge_of(estimator_of(200))


def test_a_judge_reads_back_as_it_was_written(trees: Classifier, linear: Classifier, tmp_path: Path) -> None:
    """Scores, probabilities, bounds, context and explanations, to the last bit, for both models."""
    drafts = made_table(50, seed=3).vectors
    for judge in (trees, linear):
        judge.save(tmp_path)
        again = Classifier.load(tmp_path)
        assert (again.scores(drafts) == judge.scores(drafts)).all()
        assert [again.explain(draft) for draft in drafts[:5]] == [judge.explain(draft) for draft in drafts[:5]]
        for raw in (0.0, 0.3, 0.99, 1.0):
            assert again.probability(raw) == judge.probability(raw)
            assert again.interval(raw) == judge.interval(raw)
        assert (again.context.known_tools, again.context.tool_records) == (
            judge.context.known_tools, judge.context.tool_records,
        )  # fmt: skip
        assert (again.names, again.stage, again.rows) == (judge.names, judge.stage, judge.rows)
        hidden = made_table(60, seed=4).hidden[0]
        assert again.context.probe is not None
        assert judge.context.probe is not None
        assert again.context.probe.read(hidden) == judge.context.probe.read(hidden)


def test_the_signals_that_spoke_most_are_named(linear: Classifier) -> None:
    """Largest first; the log-odds that a signal adds over its median, by its sign; nothing for one never seen."""
    draft = np.zeros(F, np.float32)
    draft[COLUMN["value_logprob_min"]] = -8.0
    draft[COLUMN["probe"]] = 99.0
    (name, gained), *others = linear.explain(draft)
    assert name == "value_logprob_min"
    whole = linear.score(draft)
    draft[COLUMN["value_logprob_min"]] = 0.0
    odds = [np.log(p / (1 - p)) for p in (whole, linear.score(draft))]
    assert gained == pytest.approx(odds[0] - odds[1])
    assert gained < 0
    assert others == []


Broken = Callable[[dict[str, Any]], Any]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda d: d.update(unheard=1), "unheard"),
        (lambda d: d.update(format=2), "format"),
        (lambda d: d.update(features_version=999), "features_version: 999"),
        (lambda d: d.update(stage="later"), "stage"),
        (lambda d: d["names"].__setitem__(0, "x"), "names: no signal 'x'"),
        (lambda d: d["names"].__setitem__(0, d["names"][1]), "names: a signal twice"),
        (lambda d: d["medians"].pop(), "names"),
        (lambda d: d["model"].update(kind="pickle"), "pickle"),
        (lambda d: d["model"].update(depth=65), "model: depth"),
        (lambda d: d["model"]["left"].__setitem__(0, 10**9), "model: a node"),
        (lambda d: d["model"]["left"].__setitem__(0, -1), "model: a node"),
        (lambda d: d["model"]["left"].__setitem__(0, 2**70), r"model\.left|model: a number"),
        (lambda d: d["model"]["feature"].__setitem__(0, F), "model: a column"),
        (lambda d: d["model"]["value"].pop(), "model: node arrays"),
        (lambda d: d["model"].update(baseline=None), "baseline"),
        (lambda d: d["calibration"].update(kind="other"), "other"),
        (lambda d: d.update(calibration={"kind": "sigmoid", "slope": -1.0, "offset": 0.0}), "calibration: slope"),
        (lambda d: d.update(calibration={"kind": "isotonic", "score": [0, 1], "probability": [1, 0]}), "calibration"),
        (lambda d: d["bounds"]["low"].__setitem__(0, 2.0), "bounds"),
        (lambda d: d["tool_records"].update(z=[1.5, 1]), "tool_records"),
        (lambda d: d["probe"]["weights"].pop(), "probe"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_refused(
    trees: Classifier, tmp_path: Path, broken: Broken, message: str
) -> None:
    """Unknown keys and kinds, other versions, arrays that do not fit: an error that names the field."""
    trees.save(tmp_path)
    file = tmp_path / "classifier.json"
    document = json.loads(file.read_bytes())
    broken(document)
    file.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(ClassifierError, match=message):
        Classifier.load(tmp_path)


def test_a_file_that_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing, no JSON, nested without end, too large."""
    file = tmp_path / "classifier.json"
    with pytest.raises(ClassifierError, match="cannot be read"):
        Classifier.load(tmp_path)
    for text in ("{", "[" * 100_000, "null", "{}"):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(ClassifierError, match=r"classifier\.json"):
            Classifier.load(tmp_path)
    monkeypatch.setattr("policies.classifier.storage.MAX_BYTES", 10)
    file.write_text(" " * 11, encoding="utf-8")
    with pytest.raises(ClassifierError, match="more than 10 bytes"):
        Classifier.load(tmp_path)


def test_the_model_is_kept_and_reads_back(estimator: Any, tmp_path: Path) -> None:
    """scikit-learn's own model gives the same probabilities after a round over disk."""
    save_estimator(estimator, tmp_path)
    drafts = made_table(50, seed=5).vectors.astype(np.float64)
    again = load_estimator(tmp_path)
    assert (again.predict_proba(drafts) == estimator.predict_proba(drafts)).all()


def test_a_model_file_with_foreign_types_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function of another module, a bomb, no archive, no file: nothing is built from any of them."""
    from sklearn.preprocessing import FunctionTransformer

    with pytest.raises(EstimatorError, match="cannot be read"):
        load_estimator(tmp_path)
    (tmp_path / FILE).write_bytes(b"no archive")
    with pytest.raises(EstimatorError, match="cannot be read: BadZipFile"):
        load_estimator(tmp_path)
    skops.io.dump(FunctionTransformer(func=subprocess.check_call), tmp_path / FILE)
    with pytest.raises(EstimatorError, match="subprocess"):
        load_estimator(tmp_path)
    with zipfile.ZipFile(tmp_path / FILE, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("schema.json", "0" * 1_000_000)
    monkeypatch.setattr("policies.classifier.estimator.MAX_BYTES", 100_000)
    with pytest.raises(EstimatorError, match="unpacks to more"):
        load_estimator(tmp_path)


def test_serving_needs_no_scikit_learn(trees: Classifier, tmp_path: Path) -> None:
    """A judge is loaded and scores a draft in a process that has imported neither scikit-learn nor skops nor scipy."""
    trees.save(tmp_path)
    code = (
        "import sys, pathlib, numpy as np\n"
        "from policies.classifier.classifier import Classifier\n"
        "from policies.features.catalog import FEATURES\n"
        f"judge = Classifier.load(pathlib.Path({str(tmp_path)!r}))\n"
        "print(judge.score(np.zeros(len(FEATURES), np.float32)))\n"
        "print([name for name in ('sklearn', 'skops', 'scipy') if name in sys.modules])\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split("\n")
    assert float(out[0]) == trees.score(np.zeros(F, np.float32))
    assert out[1] == "[]"


def test_calibration_is_that_of_scikit_learn_and_never_falls() -> None:
    """Isotonic from FEW_ROWS rows on, sigmoid below; scores that order nothing give the rate of all rows."""
    from sklearn.isotonic import IsotonicRegression

    rng = np.random.default_rng(0)
    raw = rng.random(FEW_ROWS)
    passed = rng.random(FEW_ROWS) < raw**2
    asked = np.linspace(0, 1, 201)
    many = calibrate(raw, passed)
    assert isinstance(many, Isotonic)
    expected = IsotonicRegression(out_of_bounds="clip").fit(raw, passed).predict(asked)
    np.testing.assert_allclose(many.probabilities(asked), expected, atol=1e-12)
    few = calibrate(raw[:300], passed[:300])
    assert isinstance(few, Sigmoid)
    assert (np.diff(few.probabilities(asked)) >= 0).all()
    assert few.probabilities(np.array([0.9]))[0] == pytest.approx(0.81, abs=0.15)
    against = calibrate(raw[:300], ~passed[:300])
    assert np.ptp(against.probabilities(asked)) == 0.0
    assert against.probabilities(asked)[0] == pytest.approx((~passed[:300]).mean())
    alike = calibrate(raw[:30], np.ones(30, np.bool_))
    assert alike.probabilities(asked)[0] == pytest.approx(31 / 32)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=2, max_size=40),
    st.floats(0, 1),
)
def test_the_bounds_hold_the_exact_ones(rows: list[tuple[int, bool]], raw: float) -> None:
    """At least as wide as two isotonic fits with the row itself added; ordered; rising with the score."""
    from sklearn.isotonic import IsotonicRegression

    score, passed = np.array([s / 12 for s, _ in rows]), np.array([p for _, p in rows])
    bounds = venn_abers(score, passed)
    assert bounds.problem() is None
    low, high = bounds.bounds(raw)
    exact = [
        IsotonicRegression().fit([*score, raw], [*passed.astype(float), label]).predict([raw])[0] for label in (0, 1)
    ]
    assert low <= exact[0] + 1e-9
    assert high >= exact[1] - 1e-9
    assert 0 <= low <= high <= 1


def test_bounds_are_tight_where_rows_are_many() -> None:
    """Two thousand rows leave a few percent between the bounds in the middle."""
    rng = np.random.default_rng(2)
    raw = rng.random(2000)
    bounds: VennAbers = venn_abers(raw, rng.random(2000) < raw)
    low, high = bounds.bounds(0.5)
    assert low < 0.55
    assert high > 0.45
    assert high - low < 0.1
