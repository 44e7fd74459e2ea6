"""A learning curve: pass rates on fixed samples, and the validation's loss, by how much of a course was seen."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from evaluation.intervals import wilson


class SetRate(msgspec.Struct, frozen=True):
    """Drafts of one sample."""

    passed: int
    n: int


class CurvePoint(msgspec.Struct, frozen=True, kw_only=True):
    """What a run had learned at one step."""

    step: int
    rows: int | None
    """Rows seen; None where the run does not say."""
    validation_loss: float | None
    rates: dict[str, SetRate]
    """By set."""


def render_curve(points: Sequence[CurvePoint], facts: Mapping[str, str]) -> str:
    """A Markdown page: one row a step."""
    sets = list(dict.fromkeys(name for point in points for name in point.rates))
    lines = ["# Learning curve", "", *(f"{name}: `{value}`  " for name, value in facts.items()), ""]
    lines += [
        "Pass rate in %, its 95 % interval and n, on the same cases at every step; step 0 is the base model. Rows are "
        "reckoned from the tokens seen.",
        "",
        "| step | rows seen | validation loss | " + " | ".join(sets) + " |",
        "| --- | --- | --- |" + " --- |" * len(sets),
    ]
    for point in points:
        rows = "–" if point.rows is None else f"{point.rows:,}"
        loss = "–" if point.validation_loss is None else f"{point.validation_loss:.3f}"
        told = [_told(point.rates[name]) if name in point.rates else "–" for name in sets]
        lines.append(f"| {point.step} | {rows} | {loss} | " + " | ".join(told) + " |")
    return "\n".join(lines) + "\n"


def write_curve(points: Sequence[CurvePoint], folder: Path, facts: Mapping[str, str]) -> list[Path]:
    """Write `learning_curve.md`, `.json` and `.png` into `folder`; their paths. The picture needs matplotlib."""
    folder.mkdir(parents=True, exist_ok=True)
    markdown, table, picture = (folder / f"learning_curve.{ending}" for ending in ("md", "json", "png"))
    markdown.write_text(render_curve(points, facts), encoding="utf-8")
    content = {**facts, "points": list(points)}
    table.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n")
    _draw(points, picture)
    return [markdown, table, picture]


def _draw(points: Sequence[CurvePoint], path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # matplotlib's dependencies, not ours
        from matplotlib.figure import Figure
    by_rows = all(point.rows is not None for point in points)
    places = [(point.rows if by_rows else point.step) or 0 for point in points]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for name in dict.fromkeys(name for point in points for name in point.rates):
        shown = [(x, point.rates[name]) for x, point in zip(places, points, strict=True) if name in point.rates]
        xs, rates = [x for x, _ in shown], [100 * rate.passed / rate.n for _, rate in shown]
        ends = [wilson(rate.passed, rate.n) for _, rate in shown]
        axes.plot(xs, rates, marker="o", label=name.replace("_", " "))
        axes.fill_between(xs, [100 * low for low, _ in ends], [100 * high for _, high in ends], alpha=0.15)
    axes.set_xlabel("rows seen" if by_rows else "step")
    axes.set_ylabel("pass rate, %")
    axes.set_ylim(0, 100)
    losses = [(x, p.validation_loss) for x, p in zip(places, points, strict=True) if p.validation_loss is not None]
    if losses:
        right = axes.twinx()
        right.plot(*zip(*losses, strict=True), color="grey", linestyle="--")
        right.set_ylabel("validation loss (dashed), nats a token")
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=110)


def _told(rate: SetRate) -> str:
    low, high = wilson(rate.passed, rate.n)
    return f"{100 * rate.passed / rate.n:.1f} ({100 * low:.0f}–{100 * high:.0f}) of {rate.n}"
