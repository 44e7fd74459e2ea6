"""A user's own ledger as the rows of a report and of `tune`: what is known is counted, what is not is said."""

import asyncio
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from evaluation.live.decisions import Observed, choose
from router.__main__ import app as cli
from router.ledger.audits import Audit, record_audit
from router.ledger.outcomes import OutcomeLabel, of_decision, record
from router.ledger.row import DecisionRow
from router.ledger.store import Ledger
from router.server.app import create_app
from tests.router.cascade.test_gateway import CALL, ask, post
from tests.router.cli.test_costs import DAY, large, small, write
from tests.router.conftest import ScriptedSmall, served
from tests.router.outcomes.test_shadow_audits import OFTEN, PARIS, Large, _audit, _audited, settings


def command(name: str, url: str, *arguments: str) -> Result:
    return CliRunner().invoke(cli, [name, "--ledger", url, *arguments], env={"COLUMNS": "200"})


def reported(url: str, folder: Path, *arguments: str) -> dict[str, Any]:
    outcome = command("report", url, "--out", str(folder), *arguments)
    if outcome.exception and not isinstance(outcome.exception, SystemExit):
        raise outcome.exception
    assert outcome.exit_code == 0, outcome.output
    made: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert (folder / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    return made


def point(report: dict[str, Any], key: str) -> dict[str, Any]:
    return next(one for one in report["points"] if one["key"] == key)


async def _say(url: str, decision_id: str, label: str) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.post(url + "/feedback", json={"decision_id": decision_id, "label": label}) as response,
    ):
        assert response.status == 200


MEAN = {"kind": "threshold", "score": "mean_logprob", "threshold": 0.5}


def test_a_gateways_own_decisions_are_a_report(ledger_url: str, tmp_path: Path) -> None:
    """Thirty served drafts, the surer ones right by their audits, one that feedback overrules and one whose call a tool
    refused; an unsure draft that went large and was right; a pinned request, which is no row."""
    small_model, large_model = ScriptedSmall(CALL), Large()

    async def traffic() -> None:
        app = create_app(settings(ledger_url, policy=MEAN), small=small_model, large=large_model, constants=OFTEN)
        async with served(app) as url:
            for i in range(30):
                small_model.logprob = math.log(0.99 - 0.01 * i)
                large_model.arguments = PARIS if i < 20 else {"city": "Rome"}
                _, headers, _ = await post(url, ask(messages=[{"role": "user", "content": f"Weather, please: {i}"}]))
                await _audited(app.services.ledger, i + 1)
                if i == 25:
                    await _say(url, headers["x-smallcall-decision-id"], "pass")
            first = (await app.services.ledger.page())[0]
            call = first.content["answer"]["choices"][0]["message"]["tool_calls"][0]
            result = '{"status": 422, "error": "no such city"}'
            turns = [
                *first.content["request"]["messages"],
                {"role": "assistant", "tool_calls": [call]},
                {"role": "tool", "tool_call_id": call["id"], "content": result},
            ]
            small_model.logprob, large_model.arguments = math.log(0.4), PARIS
            await post(url, ask(messages=turns))
            await post(url, ask(model="smallcall/large"))
            async with asyncio.timeout(10):
                while not await of_decision(app.services.ledger.engine, first.decision_id):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)

    asyncio.run(traffic())
    made = reported(ledger_url, tmp_path)
    assert (made["cases"], made["clusters"]) == (31, 30), "the result came in the first one's conversation"
    assert (made["small"]["failed"], made["large"]["arm"]) == (0, "openai/gpt-4o")
    assert point(made, "small_only")["quality"]["value"] == pytest.approx((20 - 1 + 1 + 1) / 31)
    assert point(made, "large_only")["quality"]["value"] == pytest.approx(30 / 31), "it had made the refused call, too"
    assert point(made, "large_only")["cost_usd_per_1000"] == pytest.approx(100.0)
    assert point(made, "gateway")["escalated"] == pytest.approx(1 / 31)
    assert point(made, "gateway")["quality"]["value"] == pytest.approx(21 / 31)
    (curve,) = (one for one in made["curves"] if one["key"] == "as_decided")
    assert curve["label"] == "score of mean_logprob"
    assert curve["auroc"]["value"] > 0.8
    worst = made["mistakes"][0]
    assert (worst["asked"], worst["small"]) == ("Weather, please: 20", 'get_weather {"city": "Paris"}')
    assert worst["large"] == 'get_weather {"city": "Rome"}'
    assert (
        made["remarks"][0] == "Every decision had the same chance, 100.000%, to be among the 31 rows (docs/study.md)."
    )


def fill(url: str, rows: list[DecisionRow], audits: list[Audit], outcomes: list[OutcomeLabel]) -> None:
    async def run() -> None:
        async with Ledger.open(url) as ledger:
            await write(ledger, rows)
            for one in audits:
                await record_audit(ledger.engine, one)
            await record(ledger.engine, outcomes)

    asyncio.run(run())


def judged(name: str, **changes: Any) -> DecisionRow:
    told = {"stage": "after", "policy": "classifier>=0.5", "outcome": "calls", "score": 0.9, "probability": 0.9}
    return small(name, DAY, **{**told, "audit_propensity": 0.5, **changes})


def said(decision_id: str, label: int | None, **changes: Any) -> OutcomeLabel:
    told = {"source": "feedback", "strength": "strong", "reason": "feedback", "fault": "none", **changes}
    return OutcomeLabel(decision_id=decision_id, call_index=-1, at=DAY, label=label, **told)


def test_what_is_not_known_is_neither_right_nor_wrong(ledger_url: str, tmp_path: Path) -> None:
    """Each in its own count; weak labels, faults of the environment and audits that failed say nothing."""
    rows = [judged(f"ok{i:02}") for i in range(40)]
    rows += [
        judged("n0-silent", audit_propensity=None),
        judged("n1-audit-failed"),
        judged("n2-other", policy="weakest_token>=0.5"),
        judged("n3-during", stage="during"),
        large("n4-large", stage="after", policy="classifier>=0.5", outcome="calls", score=0.2),
        judged("n5-price", large_input_usd_per_mtok=None),
        replace(judged("n6-pinned"), policy="pinned"),
        replace(judged("n7-error"), status=503, side="none"),
        judged("z-newest"),
    ]
    audits = [_audit(f"ok{i:02}", i % 4 != 0) for i in range(20)]
    audits += [_audit("n1-audit-failed", None), replace(_audit("n5-price", True), cost_nusd=None)]
    outcomes = [said(f"ok{i:02}", int(i != 30)) for i in range(24, 36)]
    outcomes += [
        said("ok36", 1, source="implicit", strength="weak", reason="progress"),
        said("ok37", None, source="implicit", strength="none", reason="status_503", fault="environment"),
        said("ok38", 0, source="implicit", reason="status_422", fault="call"),
    ]
    fill(ledger_url, rows, audits, outcomes)
    made = reported(ledger_url, tmp_path / "told", "--labels", "told")
    assert made["cases"] == 13
    assert point(made, "small_only")["quality"]["value"] == pytest.approx(11 / 13)
    assert made["remarks"][0] == (
        "Decisions that are in no figure, neither as passed nor as failed: "
        "1 given up before the draft was whole; 1 scored by another judge than the newest; "
        "1 gone large, and nobody said whether the draft was right; "
        "31 answered small, and nobody said whether that was right."
    )
    made = reported(ledger_url, tmp_path / "sample", "--since", "2026-05-04", "--until", "2026-05-04")
    for told in (
        "1 gone large, and nothing compared the draft with the answer",
        "1 without a chance of an audit",
        "1 held against the large model, which showed nothing",
        "1 where the large model's cost is not known",
    ):
        assert told in made["remarks"][0]
    assert 20 < made["cases"] < 33
    assert "Every decision had the same chance, 50.000%" in made["remarks"][1]
    assert command("report", ledger_url, "--since", "2027-01-01", "--out", str(tmp_path)).exit_code == 1


def test_a_sample_shows_the_truth_that_unequal_auditing_and_speaking_hide() -> None:
    """Doubtful drafts are audited five times as often, and users mostly speak of what went wrong: among the rows each
    decision of the traffic is as likely as any other."""
    rng = np.random.default_rng(7)
    rows, truth = [], []
    for i in range(60_000):
        p = 0.4 if rng.random() < 0.2 else 0.95
        right, spoken = bool(rng.random() < p), rng.random()
        e = 0.1 if p > 0.5 else 0.5
        goes_large = rng.random() < 0.3
        e = 1.0 if goes_large else e
        compared = bool(rng.random() < e)
        truth.append(right)
        rows.append(
            Observed(
                decision_id=f"{i:06}", created_at=DAY, small=not goes_large, judge="classifier", reason="accepted",
                outcome="calls", valid=True, score=p, probability=p, tool="t", propensity=e, compared=compared,
                told=right if not goes_large and spoken < (0.02 if right else 0.3) else None,
                agreed=right if compared else None, large_usd=0.001,
            )
        )  # fmt: skip
    chosen = choose(rows, "sample")
    n, right = len(chosen.rows), np.array([row.passes[0] for row in chosen.rows if row.passes])
    assert (chosen.share, chosen.unseen) == (0.1, 60_000 - n)
    assert n == pytest.approx(6_000, abs=4 * math.sqrt(60_000 * 0.1 * 0.9))
    assert right.mean() == pytest.approx(np.mean(truth), abs=4 * right.std() / math.sqrt(n))
    assert np.mean([row.small for row in chosen.rows]) == pytest.approx(0.7, abs=0.03)
    told = np.array([row.told for row in choose(rows, "told").rows])
    assert abs(told.mean() - np.mean(truth)) > 0.3
    assert [row.decision_id for row in choose(rows, "sample").rows] == [row.decision_id for row in chosen.rows]


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["report"], 2, "give a trace, or --ledger"),
        (["report", "x.parquet", "--ledger", "URL"], 2, "give a trace, or --ledger"),
        (
            ["report", "--ledger", "URL", "--large", "gpt-4o-2024-08-06-FC", "--no-classifier"],
            2,
            "--large, --classifier",
        ),
        (["report", "x.parquet", "--since", "2026-11-01"], 2, "--since: for a ledger only"),
        (["tune", "--ledger", "URL", "--max-harm", "0.1", "--staged"], 2, "--staged: for traces only"),
        (["tune", "--max-harm", "0.1"], 2, "give a trace, or --ledger"),
        (["report", "--ledger", "URL", "--since", "soon"], 2, "not a day"),
        (["report", "--ledger", "mysql://x"], 1, "the ledger cannot be opened"),
        (["report", "--ledger", "URL"], 1, "no decision is known to be right or wrong: the ledger has none"),
    ],
)
def test_what_cannot_be_read_is_said(arguments: list[str], code: int, told: str, tmp_path: Path) -> None:
    """With the option that is wrong."""
    url = f"sqlite+aiosqlite:///{tmp_path / 'ledger.db'}"
    found = CliRunner().invoke(cli, [url if word == "URL" else word for word in arguments], env={"COLUMNS": "200"})
    assert found.exit_code == code, found.output
    assert told in found.output


def test_tune_reads_the_ledger(ledger_url: str) -> None:
    """A certified threshold of the score of the time, and what was left out; a bundle's score is told as such."""
    rng = np.random.default_rng(3)
    scores = rng.uniform(0.5, 1.0, 600)
    right = rng.random(600) < np.where(scores > 0.8, 0.999, 0.5)
    rows = [judged(f"{i:04}", audit_propensity=1.0, score=float(score)) for i, score in enumerate(scores)]
    rows.append(judged("9999", audit_propensity=None))
    fill(ledger_url, rows, [_audit(f"{i:04}", bool(one), 1.0) for i, one in enumerate(right)], [])
    told = command("tune", ledger_url, "--max-harm", "0.05", "--confidence", "0.9")
    assert told.exit_code == 0, told.output
    assert "threshold on classifier" in told.stdout
    assert "harm ≤ 5.0% with 90%" in told.stdout
    assert "1 without a chance of an audit" in told.stdout
    found = re.search(r"threshold (0\.\d+) of classifier: a bundle is never changed", told.stdout)
    assert found is not None
    assert 0.7 < float(found[1]) < 0.82
    nothing = command("tune", ledger_url, "--max-harm", "0.05", "--since", "2027-01-01")
    assert nothing.exit_code == 1
    assert "no decision is known to be right or wrong" in nothing.output
