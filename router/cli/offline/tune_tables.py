"""What `smallcall tune` prints."""

from __future__ import annotations

from evaluation.report.sheet import Sheet
from evaluation.report.text import percent
from evaluation.tuning.by_stage import Combination, StagedTuning
from evaluation.tuning.by_tool_class import ClassTuning
from evaluation.tuning.rows import Operating
from evaluation.tuning.tune import Tuning
from policies.rules.certificate import Certificate

_FIGURES = ("answered small", "passes", "large passes", "cost", "latency (large's)", "harm", "certificate")
_NO_FIGURES = ["–"] * (len(_FIGURES) - 1)


def choices_sheet(made: Tuning) -> Sheet:
    """The choice with its neighbours: what a stricter and a looser goal would bring."""
    rows = []
    for choice in made.choices:
        missing = "nothing could be certified" if choice.goal == "max_harm" else "nothing could be chosen"
        rows.append(
            [
                f"{choice.goal} {choice.target:g}" + (" ◀" if choice is made.chosen else ""),
                _threshold(choice.operating.threshold),
                *_figures(choice.operating),
                _certified(choice.certificate) or missing,
            ]
        )
    return _sheet(f"threshold on {made.judge.name}", rows, "goal", "threshold")


def classes_sheet(made: ClassTuning) -> Sheet:
    """One line a class, and all together."""
    rows = []
    for one in made.classes:
        threshold = one.certificate.threshold if one.certificate else None
        figures = _figures(one.operating) if one.operating is not None else _NO_FIGURES
        missing = f"nothing could be certified from {one.rows} rows"
        certified = _certified(one.certificate) or missing
        rows.append([one.pattern, f"{one.alpha:.2%}", _threshold(threshold), *figures, certified])
    rows.append(["all", "", "", *_figures(made.together), "each class its own"])
    return _sheet("thresholds by tool class", rows, "class", "at most", "threshold")


def stages_sheet(made: StagedTuning) -> Sheet:
    """The single threshold beside the gates."""
    rows = []
    for name, at, operating, certificate in (
        ("single", made.single, made.single_operating, made.single_certificate),
        ("staged", made.staged, made.staged_operating, made.staged_certificate),
    ):
        if at is None or operating is None:
            rows.append([name, "–", "–", "–", *_NO_FIGURES, "nothing could be certified"])
        else:
            mark = " ◀" if made.pays == (name == "staged") else ""
            rows.append([name + mark, *_thresholds(at), *_figures(operating), _certified(certificate)])
    return _sheet("thresholds by stage", rows, "policy", "request ≥", "plan ≥", "draft ≥")


def _sheet(title: str, rows: list[list[str]], *first: str) -> Sheet:
    return Sheet((*first, *_FIGURES), rows, title, folds=(first[0], "certificate"))


def _figures(at: Operating) -> list[str]:
    latency = "–"
    if at.latency_s is not None:
        latency = f"{at.latency_s:.2f} s"
        if at.large_latency_s is not None:
            latency += f" ({at.large_latency_s:.2f})"
    return [
        f"{at.share_small:.1%}",
        percent(at.passed),
        f"{at.large_passed:.1%}",
        f"{at.cost:.1%}",
        latency,
        percent(at.harmed),
    ]


def _certified(shown: Certificate | None) -> str:
    if shown is None:
        return ""
    return f"harm ≤ {shown.alpha:.1%} with {1 - shown.delta:.0%} ({shown.errors} of {shown.rows})"


def _threshold(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _thresholds(at: Combination) -> list[str]:
    return ["–" if value == float("-inf") else f"{value:.4f}" for value in (at.request, at.plan, at.draft)]
