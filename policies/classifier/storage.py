"""A classifier on disk: one JSON file, bounded and checked when read. Nothing in it is ever executed.

Numbers are written so that they read back exactly. Unknown keys are errors.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from policies.classifier.calibration import Calibration, Isotonic, Sigmoid, VennAbers
from policies.classifier.models import Linear, Trees
from policies.features.catalog import FEATURES_VERSION, standing_at
from policies.features.probe import Probe
from policies.features.requests import Context, ToolRecord
from policies.types import HIDDEN_SIZE, HiddenPlace, Stage

FILE = "classifier.json"
FORMAT: Literal[1] = 1
MAX_BYTES = 64 * 1024 * 1024


class ClassifierError(ValueError):
    """A classifier that cannot be read, or does not fit this program. The message names the field."""


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class _Trees(_Part, tag="trees", tag_field="kind", frozen=True):
    roots: list[int]
    feature: list[int]
    threshold: list[float]
    missing_left: list[bool]
    left: list[int]
    right: list[int]
    value: list[float]
    baseline: float
    depth: int


class _Linear(_Part, tag="linear", tag_field="kind", frozen=True):
    median: list[float]
    mean: list[float]
    scale: list[float]
    weight: list[float]
    indicator: list[int]
    indicator_mean: list[float]
    indicator_scale: list[float]
    indicator_weight: list[float]
    intercept: float


class _Sigmoid(_Part, tag="sigmoid", tag_field="kind", frozen=True):
    slope: float
    offset: float


class _Isotonic(_Part, tag="isotonic", tag_field="kind", frozen=True):
    score: list[float]
    probability: list[float]


class _Bounds(_Part, frozen=True):
    score: list[float]
    low: list[float]
    high: list[float]


class _Probe(_Part, frozen=True):
    mean: list[float]
    deviation: list[float]
    weights: list[float]
    intercept: float


class _File(_Part, frozen=True):
    format: Literal[1]
    features_version: int
    stage: Stage
    names: list[str]
    rows: int
    medians: list[float | None]
    model: _Trees | _Linear
    calibration: _Sigmoid | _Isotonic
    bounds: _Bounds
    known_tools: list[str]
    tool_records: dict[str, tuple[float, int]]
    probe: _Probe | None


def write(
    folder: Path,
    *,
    model: Trees | Linear,
    calibration: Calibration,
    bounds: VennAbers,
    context: Context,
    names: Sequence[str],
    medians: np.ndarray,
    stage: Stage,
    rows: int,
) -> None:
    """Write the file; whoever reads it meanwhile sees the old one or the new one."""
    made = _File(
        format=FORMAT,
        features_version=FEATURES_VERSION,
        stage=stage,
        names=list(names),
        rows=rows,
        medians=[None if np.isnan(median) else float(median) for median in medians],
        model=_Trees(**_plain(model)) if isinstance(model, Trees) else _Linear(**_plain(model)),
        calibration=_Sigmoid(**_plain(calibration))
        if isinstance(calibration, Sigmoid)
        else _Isotonic(**_plain(calibration)),
        bounds=_Bounds(**_plain(bounds)),
        known_tools=sorted(context.known_tools),
        tool_records={tool: (record.rate, record.rows) for tool, record in sorted(context.tool_records.items())},
        probe=None if context.probe is None else _Probe(**_plain(context.probe)),
    )
    partial = folder / f"{FILE}.partial"
    with partial.open("wb") as file:
        file.write(msgspec.json.encode(made) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(folder / FILE)


def read(folder: Path) -> dict[str, Any]:
    """The fields of a `Classifier`. Raises ClassifierError."""
    path = folder / FILE
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ClassifierError(f"{path}: cannot be read: {error.strerror}") from error
    if len(text) > MAX_BYTES:
        raise ClassifierError(f"{path}: more than {MAX_BYTES} bytes")
    try:
        found = msgspec.json.decode(text, type=_File)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ClassifierError(f"{path}: {error}") from error
    try:
        return _fields(found)
    except ClassifierError as error:
        raise ClassifierError(f"{path}: {error}") from error


def _fields(found: _File) -> dict[str, Any]:
    if found.features_version != FEATURES_VERSION:
        raise ClassifierError(f"features_version: {found.features_version}; this program has {FEATURES_VERSION}")
    if unknown := set(found.names) - set(standing_at(found.stage)):
        raise ClassifierError(f"names: no signal {min(unknown)!r} stands at that stage")
    if len(set(found.names)) != len(found.names) or len(found.medians) != len(found.names):
        raise ClassifierError("names: a signal twice, or not one median each")
    model = _trees(found.model) if isinstance(found.model, _Trees) else _linear(found.model)
    calibration: Calibration
    if isinstance(found.calibration, _Sigmoid):
        calibration = Sigmoid(found.calibration.slope, found.calibration.offset)
    else:
        calibration = Isotonic(_floats(found.calibration.score), _floats(found.calibration.probability))
    bounds = VennAbers(_floats(found.bounds.score), _floats(found.bounds.low), _floats(found.bounds.high))
    problems = {
        "model": model.problem(len(found.names)),
        "calibration": calibration.problem(),
        "bounds": bounds.problem(),
        "tool_records": _records_problem(found.tool_records),
    }
    for field, problem in problems.items():
        if problem is not None:
            raise ClassifierError(f"{field}: {problem}")
    records = {tool: ToolRecord(rate, rows) for tool, (rate, rows) in found.tool_records.items()}
    return {
        "model": model,
        "calibration": calibration,
        "bounds": bounds,
        "context": Context(frozenset(found.known_tools), records, _probe(found.probe)),
        "names": tuple(found.names),
        "medians": np.array([np.nan if median is None else median for median in found.medians], dtype=np.float64),
        "stage": found.stage,
        "rows": found.rows,
    }


def _trees(part: _Trees) -> Trees:
    return Trees(
        roots=_ints(part.roots),
        feature=_ints(part.feature),
        threshold=_floats(part.threshold),
        missing_left=np.array(part.missing_left, dtype=np.bool_),
        left=_ints(part.left),
        right=_ints(part.right),
        value=_floats(part.value),
        baseline=part.baseline,
        depth=part.depth,
    )


def _linear(part: _Linear) -> Linear:
    return Linear(
        median=_floats(part.median),
        mean=_floats(part.mean),
        scale=_floats(part.scale),
        weight=_floats(part.weight),
        indicator=_ints(part.indicator),
        indicator_mean=_floats(part.indicator_mean),
        indicator_scale=_floats(part.indicator_scale),
        indicator_weight=_floats(part.indicator_weight),
        intercept=part.intercept,
    )


def _probe(part: _Probe | None) -> Probe | None:
    if part is None:
        return None
    probe = Probe(_floats(part.mean), _floats(part.deviation), _floats(part.weights), part.intercept)
    size = len(HiddenPlace) * HIDDEN_SIZE
    arrays = (probe.mean, probe.deviation, probe.weights)
    if any(len(array) != size for array in arrays) or (probe.deviation <= 0).any():
        raise ClassifierError(f"probe: not {size} numbers each, or a deviation that is not positive")
    return probe


def _records_problem(records: dict[str, tuple[float, int]]) -> str | None:
    fits = all(0 <= rate <= 1 and rows >= 0 for rate, rows in records.values())
    return None if fits else "a rate outside [0, 1] or a negative count"


def _plain(part: Any) -> dict[str, Any]:
    """The fields of a dataclass of arrays and numbers, arrays as lists."""
    values = {name: getattr(part, name) for name in type(part).__dataclass_fields__}
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in values.items()}


def _floats(values: list[float]) -> np.ndarray:
    return np.array(values, dtype=np.float64)


def _ints(values: list[int]) -> np.ndarray:
    try:
        return np.array(values, dtype=np.int64)
    except OverflowError as error:
        raise ClassifierError("model: a number that is too large") from error
