"""Rival judges' decisions scored beside ours: by plain counting, and with what could not be run said."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from bench.judge_table import Drafts, Rival, compare, drafts_of, render_markdown, write
from evaluation.cases.study_data import StudyData
from evaluation.recorded.models import GPT_4O, trace_of
from evaluation.replay.plans import Score
from tests.evaluation.drafts import of_recording


@cache
def _drafts() -> Drafts:
    data = StudyData.of_checkout()
    cases = data.bfcl()[::8]
    return drafts_of("xLAM-1b", cases, of_recording(cases), trace_of(GPT_4O, cases, data, command="recorded"))


def _score() -> Score:
    part = _drafts().part
    return Score("ours", "ours", np.where(part.servable, part.arms.small_pass + 0.5, -np.inf))


def test_a_decision_is_scored_by_plain_counting() -> None:
    """Share served, share right, pass rate, cost and harm are those of serving exactly these drafts."""
    arms = _drafts().arms
    accepted = np.arange(len(arms)) % 3 > 0
    table = compare(_drafts(), [Rival("rival 1", {"every third": accepted.tolist()}, [])], _score())
    row = next(judge for judge in table.judges if judge.judge == "every third")
    served = accepted & arms.draftable
    assert row.served == pytest.approx(served.mean())
    assert row.right == pytest.approx(arms.small_pass[served].mean())
    assert row.passed.value == pytest.approx(np.where(served, arms.small_pass, arms.large_pass).mean())
    assert row.harmed == pytest.approx((served & ~arms.small_pass & arms.large_pass).mean())
    spent = arms.small_cost * arms.draftable + np.where(served, 0, arms.large_cost)
    assert row.cost.value == pytest.approx(spent.sum() / arms.large_cost.sum())
    assert row.passed.low is not None
    assert row.passed.low < row.passed.value


def test_ours_at_a_rivals_share_serves_as_many_and_the_surest() -> None:
    """A perfect order of right drafts first loses nothing while it serves no more than are right."""
    part = _drafts().part
    right = part.servable & part.arms.small_pass
    n = int(right.sum())
    as_many = np.zeros(len(part), dtype=bool)
    as_many[np.flatnonzero(~right & part.arms.draftable)[: n // 4]] = True
    table = compare(_drafts(), [Rival("rival 1", {"wrong ones": as_many.tolist()}, [])], _score())
    row = next(judge for judge in table.judges if judge.judge == "wrong ones")
    assert row.same_share is not None
    assert row.same_share.value is not None
    assert row.same_share.value >= part.arms.large_pass.mean()
    assert row.passed.value is not None
    assert row.same_share.value > row.passed.value
    judged = {judge.judge: judge for judge in table.judges}
    assert judged["small only"].same_share is None  # more than may be served
    assert judged["oracle"].passed.value == pytest.approx((part.arms.small_pass | part.arms.large_pass).mean())


def test_what_could_not_be_run_is_said_without_markup(tmp_path: Path) -> None:
    """A rival's own words stand on one line; a rival that decided other drafts is an error."""
    rival = Rival("rival 1", {}, ["mf: OSError: no | weights\n`here`"])
    tables = [compare(_drafts(), [rival], None)]
    markdown, _ = write(tables, tmp_path, {"command": "make bench-judges", "commit": "0123abc"})
    text = markdown.read_text(encoding="utf-8")
    assert text == render_markdown(tables, {"command": "make bench-judges", "commit": "0123abc"})
    assert "- rival 1: mf: OSError: no / weights 'here'" in text
    assert all(judge.same_share is None for judge in tables[0].judges)
    with pytest.raises(ValueError, match="decided 1 of"):
        compare(_drafts(), [Rival("rival 1", {"few": [True]}, [])], None)


def test_a_judge_sees_requests_and_calls_and_no_gold() -> None:
    """Rows hold messages, tools and decoded calls, and nothing that says what is right."""
    rows = list(_drafts().rows())
    assert len(rows) == len(_drafts().arms)
    assert all(row.keys() == {"id", "messages", "tools", "calls"} for row in rows)
    called = [call for row in rows for call in row["calls"]]
    assert called
    assert all(isinstance(call["arguments"], dict) for call in called)
