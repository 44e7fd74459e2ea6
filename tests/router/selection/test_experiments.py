"""Experiments through the gateway's door: who gets which arm, what is kept, how it ends, what is told of it."""

import asyncio
import hashlib
import io
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import alembic.command
import alembic.config
import numpy as np
import pytest
from scipy.stats import binom
from sqlalchemy import Connection, inspect
from sqlalchemy.ext.asyncio import create_async_engine
from typer.testing import CliRunner

from policies.types import Request
from router.__main__ import app as cli
from router.constants import Constants
from router.dialects.request import ChatRequest, LargeOnlyRequest
from router.ledger import store
from router.ledger.audits import Audit, record_audit
from router.ledger.outcomes import OutcomeLabel, record
from router.ledger.row import DecisionRow
from router.ledger.store import Ledger
from router.selection.assignment import Assignment
from router.selection.experiment_store import ExperimentStore
from router.selection.experiment_watch import Watch, experiment_state
from router.settings import Experiment, Settings, SettingsError, load_settings
from tests.evaluation.experiments.simulation import simulate
from tests.router.cascade.test_gateway import CALL, Scripted, ask, rows_of
from tests.router.conftest import Make, ScriptedSmall, served
from tests.router.outcomes.test_labels import outcome

# litellm builds a pydantic model at its first stream, and pydantic has a remark on it.
pytestmark = pytest.mark.filterwarnings("ignore:Item 'summary' on TypedDict:UserWarning")

AUDIT = Audit(
    decision_id="",
    at=datetime(2026, 1, 1, tzinfo=UTC),
    propensity=0.5,
    agreed=True,
    reason="agreed",
    large_model="openai/gpt-4o",
    prompt_tokens=10,
    completion_tokens=5,
    cost_nusd=None,
    latency_s=1.0,
    answer=None,
)
TWO_ARMS = {"arms": {"control": {}, "bold": {"policy": {"kind": "small_only"}}}}
SOON = Constants(experiment_window_s=0.001, experiment_check_s=0.01)


def _assignment(name: str = "trial", **changes: Any) -> Assignment:
    return Assignment(name, Experiment.model_validate({**TWO_ARMS, **changes}))


def _chat(*messages: dict[str, Any], **changes: Any) -> ChatRequest:
    view = Request(messages=list(messages) or [{"role": "user", "content": "hi"}], tools=())
    return replace(ChatRequest("m", view, {}, 10), **changes)


def _arm(assignment: Assignment, conversation: str, **headers: str) -> str:
    found = assignment.exposure(_chat(), {"x-smallcall-conversation": conversation, **headers})
    assert found is not None
    return found.arm


# ── assignment ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_units_fall_into_arms_by_their_weights() -> None:
    weighted = _assignment(arms={"control": {"weight": 7}, "b": {"weight": 2}, "c": {"weight": 1}})
    counts = Counter(_arm(weighted, str(i)) for i in range(20_000))
    for name, share in (("control", 0.7), ("b", 0.2), ("c", 0.1)):
        low, high = binom.interval(0.9999, 20_000, share)
        assert low <= counts[name] <= high
    found = weighted.exposure(_chat(), {})
    assert found is not None
    assert {"control": 0.7, "b": 0.2, "c": 0.1}[found.arm] == pytest.approx(found.propensity)


def test_the_arm_is_the_documented_digest_of_name_and_unit() -> None:
    """Another implementation, or another process, comes to the same arm."""
    for unit in map(str, range(50)):
        found = _assignment("s", unit="key").exposure(_chat(), {"authorization": unit})
        digest = hashlib.sha256(b"s\0" + unit.encode())
        assert found is not None
        assert found.unit_sha256 == digest.hexdigest()
        assert found.arm == ("control" if int(digest.hexdigest()[:16], 16) / 2**64 < 0.5 else "bold")


def test_another_name_deals_the_units_anew() -> None:
    one, other = _assignment("one"), _assignment("other")
    same = sum(_arm(one, str(i)) == _arm(other, str(i)) for i in range(4000))
    assert binom.ppf(0.0001, 4000, 0.5) <= same <= binom.ppf(0.9999, 4000, 0.5)


def test_the_assignment_is_the_same_in_another_process() -> None:
    script = (
        "from tests.router.selection.test_experiments import _assignment, _arm\n"
        "print(''.join(_arm(_assignment(), str(i))[0] for i in range(64)))"
    )
    told = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "".join(_arm(_assignment(), str(i))[0] for i in range(64))


def test_turns_of_one_conversation_stay_together_and_conversations_and_callers_are_apart() -> None:
    """Without a header a conversation is known by what all its turns begin with."""
    assignment = _assignment()
    opening = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    later = [*opening, {"role": "assistant", "content": "a"}, {"role": "user", "content": "v"}]

    def unit(messages: list[dict[str, Any]], **headers: str) -> str:
        found = assignment.exposure(_chat(*messages), headers)
        assert found is not None
        return found.unit_sha256

    assert unit(opening) == unit(later)
    others = {
        unit([{"role": "user", "content": "u"}]),
        unit(opening, authorization="Bearer a"),
        unit(opening, authorization="Bearer b"),
        unit(opening, **{"x-smallcall-conversation": "c"}),
        unit(opening, **{"x-smallcall-conversation": "c", "authorization": "Bearer a"}),
    }
    assert len(others | {unit(opening)}) == 6
    assert unit([{"role": "system", "content": "only"}]) != unit(opening)


def test_what_no_policy_is_asked_about_is_not_taken_in() -> None:
    assert _assignment().exposure(_chat(pin="large"), {}) is None
    assert _assignment().exposure(_chat(pin="small"), {}) is None
    assert _assignment().exposure(_chat(large_only=LargeOnlyRequest("no_tools", "tools")), {}) is None
    assert _assignment(unit="key").exposure(_chat(), {}) is None
    assert _assignment(unit="key").exposure(_chat(), {"x-api-key": "k"}) is not None


# ── the gateway ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def _post(url: str, conversation: str, **changes: Any) -> str | None:
    data, headers = io.BytesIO(json.dumps(ask(**changes)).encode()), {"x-smallcall-conversation": conversation}
    async with (
        aiohttp.ClientSession() as session,
        session.post(url + "/chat/completions", data=data, headers=headers) as response,
    ):
        await response.read()
        return response.headers.get("x-smallcall-model")


async def test_each_arm_has_its_policy_and_its_rows_say_so_also_after_a_restart(gateway: Make) -> None:
    """The control escalates an unsure draft, the bold arm serves it; a conversation's arm outlives the process."""

    def make() -> Any:
        return gateway(small=ScriptedSmall(CALL, logprob=-2.0), upstream=Scripted(), experiments={"trial": TWO_ARMS})

    sides: list[dict[str, str | None]] = []
    for turn in range(2):
        app = make()
        async with served(app) as url:
            sides.append({name: await _post(url, name) for name in "abcdef"})
            assert await _post(url, "a", stream=True) == sides[0]["a"]
            assert await _post(url, "b", model="smallcall/large") == "large"
            rows = await rows_of(app, 8 * (turn + 1))
    assert sides[0] == sides[1]
    assert set(sides[0].values()) == {"small", "large"}
    exposed = [row for row in rows if row.experiment == "trial"]
    assert len(exposed) == 14
    assert {(row.arm, row.side, row.policy) for row in exposed} == {
        ("control", "large", exposed[[row.arm for row in exposed].index("control")].policy),
        ("bold", "small", "small_only"),
    }
    assert {row.arm_propensity for row in exposed} == {0.5}
    assert len({row.unit_sha256 for row in exposed}) == 6
    pinned = [row for row in rows if row.reason == "pinned_large"]
    assert [(row.experiment, row.arm, row.arm_propensity, row.unit_sha256) for row in pinned] == [(None,) * 4] * 2


@pytest.mark.parametrize(
    ("later", "reason"),
    [
        ([{"role": "assistant", "content": "a", "reasoning_content": "r"}], "reasoning_unseen"),
        ([{"role": "tool", "tool_call_id": "gone", "content": "r"}], "tool_result_unmatched"),
    ],
)
async def test_a_conversation_is_told_to_its_end_also_where_its_turns_send_it_large(
    gateway: Make, later: list[dict[str, Any]], reason: str
) -> None:
    """What earlier turns brought may hang on the arm; what the client asks for from the start does not."""
    app = gateway(small=ScriptedSmall(CALL), upstream=Scripted(), experiments={"trial": TWO_ARMS})
    opening = [{"role": "user", "content": "u"}]
    async with served(app) as url:
        for changes in ({"messages": opening}, {"messages": [*opening, *later]}, {"messages": opening, "n": 2}):
            await _post(url, "", **changes)
        first, second, several = await rows_of(app, 3)
    assert (first.side, second.reason, several.reason) == ("small", reason, "several_choices")
    assert (second.experiment, second.arm, second.unit_sha256) == ("trial", first.arm, first.unit_sha256)
    assert several.experiment is None


async def test_a_row_holds_the_probability_of_its_verdict_and_that_of_its_arm(gateway: Make) -> None:
    """A policy that draws lots says how they fell; one that does not is certain."""
    arms = {"control": {"weight": 1}, "mixed": {"weight": 3, "policy": {"kind": "random_mix", "share": 0.25}}}
    app = gateway(small=ScriptedSmall(CALL), upstream=Scripted(), experiments={"trial": {"arms": arms}})
    async with served(app) as url:
        for i in range(24):
            await _post(url, str(i), messages=[{"role": "user", "content": str(i)}])
        rows = await rows_of(app, 24)
    assert {(row.arm, row.side, row.propensity, row.arm_propensity) for row in rows} == {
        ("control", "small", 1.0, 0.25),
        ("mixed", "small", 0.75, 0.75),
        ("mixed", "large", 0.25, 0.75),
    }


async def test_a_gateway_without_experiments_loads_no_statistics() -> None:
    """scipy takes longer to import than the gateway."""
    script = (
        "import sys, router.server.app, router.__main__;"
        " print([name for name in sys.modules if name.split('.')[0] == 'scipy'])"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "ignore", "-c", script, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert out.decode().strip() == "[]"


# ── rows, guardrails, status ─────────────────────────────────────────────────────────────────────────────────────────


def exposed_rows(units: int, *, invalid: dict[str, float]) -> list[DecisionRow]:
    """One request a unit, a second apart, long ago."""
    rng = np.random.default_rng(1)
    costs = {"control": 0.02, "bold": 0.005}
    assignment = _assignment()
    rows = []
    for i in range(units):
        found = assignment.exposure(_chat(), {"x-smallcall-conversation": str(i)})
        assert found is not None
        bad = bool(rng.random() < invalid[found.arm])
        rows.append(
            DecisionRow(
                decision_id=f"{i:08}",
                created_at=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=i),
                dialect="chat_completions",
                client_model="gpt-4o",
                side="large",
                reason="low_confidence",
                stage="after",
                policy="p",
                outcome="calls",
                findings=("schema",) if bad else (),
                n_messages=int(rng.integers(1, 9)),
                large_model="openai/gpt-4o",
                large_cost_nusd=round(1e9 * costs[found.arm] * rng.uniform(0.5, 1.5)),
                latency_s=float(rng.exponential()),
                experiment="trial",
                arm=found.arm,
                arm_propensity=found.propensity,
                unit_sha256=found.unit_sha256,
            )
        )
    return rows


async def written(where: Path | str, rows: list[DecisionRow]) -> str:
    """The ledger at that URL, or in that folder."""
    url = where if isinstance(where, str) else f"sqlite+aiosqlite:///{where / 'ledger.db'}"
    async with Ledger.open(url) as ledger:
        await asyncio.gather(*(ledger.write(row) for row in rows))
    return url


async def test_a_guardrail_that_goes_ends_the_experiment_by_itself_and_for_good(gateway: Make, tmp_path: Path) -> None:
    """While it runs the bold arm serves its drafts; once harm shows in the ledger all get the gateway's own policy."""
    small = ScriptedSmall(CALL, logprob=-2.0)
    app = gateway(small=small, upstream=Scripted(), experiments={"trial": TWO_ARMS}, constants=SOON)
    async with served(app) as url:
        names = list("abcdefgh")
        assert {await _post(url, name) for name in names} == {"small", "large"}
        await written(tmp_path, exposed_rows(1500, invalid={"control": 0.02, "bold": 0.4}))
        async with asyncio.timeout(10):
            while app.services.experiments.running:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert {await _post(url, name) for name in names} == {"large"}
        last = (await app.services.ledger.page(limit=10_000))[-8:]
        assert {row.reason for row in last} == {"low_confidence"}
        assert {row.experiment for row in last} == {None}
        async with app.services.ledger.engine.begin() as connection:
            await connection.exec_driver_sql("DELETE FROM decisions")
    again = gateway(small=small, upstream=Scripted(), experiments={"trial": TWO_ARMS})
    async with served(again) as url:
        assert {await _post(url, name) for name in names} == {"large"}


async def test_harmless_rows_stop_nothing(gateway: Make, tmp_path: Path) -> None:
    await written(tmp_path, exposed_rows(1500, invalid={"control": 0.02, "bold": 0.02}))
    app = gateway(small=ScriptedSmall(CALL), upstream=Scripted(), experiments={"trial": TWO_ARMS})
    async with served(app):
        assert not app.services.experiments.assignment.stopped


async def test_a_look_that_fails_changes_nothing_and_the_next_one_is_made(ledger_url: str) -> None:
    """Rows of an arm that is not configured cannot be judged; once they are gone, harm is seen."""
    rows = exposed_rows(1500, invalid={"control": 0.02, "bold": 0.4})
    stranger = replace(rows[0], decision_id="stranger", arm="stranger", unit_sha256="f" * 64)
    await written(ledger_url, [*rows, stranger])
    assignment = _assignment()
    watch = Watch(ledger_url, Experiment.model_validate(TWO_ARMS), assignment, SOON)
    await watch.refresh()
    assert not assignment.stopped
    running = asyncio.create_task(watch.run())
    await asyncio.sleep(0.1)
    assert not running.done()
    async with Ledger.open(ledger_url) as ledger, ledger.engine.begin() as connection:
        await connection.exec_driver_sql("DELETE FROM decisions WHERE decision_id = 'stranger'")
    async with asyncio.timeout(120):
        await running
    assert assignment.stopped


async def test_a_ledger_from_before_experiments_is_migrated_with_its_rows(ledger_url: str) -> None:
    (row,) = exposed_rows(1, invalid={"control": 0.0, "bold": 0.0})
    old = replace(row, experiment=None, arm=None, arm_propensity=None, unit_sha256=None)
    await written(ledger_url, [old])
    config = alembic.config.Config()
    config.set_main_option("script_location", str(Path(store.__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")

    def downgraded(connection: Connection) -> set[str]:
        config.attributes["connection"] = connection
        alembic.command.downgrade(config, "0001")
        return {column["name"] for column in inspect(connection).get_columns("decisions")}

    engine = create_async_engine(ledger_url)
    async with engine.begin() as connection:
        names = await connection.run_sync(downgraded)
    await engine.dispose()
    assert "findings" in names
    assert "experiment" not in names
    async with Ledger.open(ledger_url) as ledger:
        assert await ledger.page() == [old]
        await ledger.write(replace(row, decision_id="new"))
        assert [found.decision_id for found in await ledger.exposures("trial")] == ["new"]


async def test_exposures_are_paged_in_order_and_are_those_of_one_experiment(ledger_url: str) -> None:
    rows = exposed_rows(7, invalid={"control": 0.0, "bold": 0.0})
    others = [replace(rows[0], decision_id="x", experiment="other"), replace(rows[0], decision_id="y", experiment=None)]
    await written(ledger_url, [*rows, *others])
    found, page = [], []
    async with Ledger.open(ledger_url) as ledger:
        while page := await ledger.exposures("trial", limit=3, after=page[-1].decision_id if page else ""):
            found += page
    assert [row.decision_id for row in found] == [row.decision_id for row in rows]
    assert [(row.created_at, row.arm, row.large_cost_nusd) for row in found] == [
        (row.created_at, row.arm, row.large_cost_nusd) for row in rows
    ]


def _config(folder: Path, url: str, **changes: Any) -> Path:
    file = folder / "smallcall.yaml"
    trial = {**TWO_ARMS, "margin": 0.05, "planned_units": 3000, "guardrails": {"p95_latency_s": 9}, **changes}
    file.write_text(json.dumps({"ledger": {"url": url}, "experiments": {"trial": trial}}))
    return file


def _status(*arguments: str) -> Any:
    return CliRunner().invoke(cli, ["ab", "status", *arguments], env={"COLUMNS": "200"})


def test_the_status_tells_arms_intervals_sample_ratio_guardrails_and_the_ship_rule(tmp_path: Path) -> None:
    """A cheaper arm that passes as often, with labels from a file: ship. The same as JSON."""
    rows = exposed_rows(4000, invalid={"control": 0.02, "bold": 0.02})
    config = _config(tmp_path, asyncio.run(written(tmp_path, rows)))
    labels = tmp_path / "labels.jsonl"
    rng = np.random.default_rng(3)
    labels.write_text(
        "\n".join(json.dumps({"decision_id": row.decision_id, "passed": bool(rng.random() < 0.85)}) for row in rows)
    )
    shown = _status("trial", "--config", str(config), "--labels", str(labels))
    assert shown.exit_code == 0, shown.output
    for part in (
        "sample ratio: sound",
        "guardrail invalid_calls (limit 0.05): stands",
        "guardrail p95_latency_s (limit 9): stands",
        "ship: it surely loses less",
    ):
        assert part in shown.output
    told = json.loads(_status("trial", "--config", str(config), "--labels", str(labels), "--json").stdout)
    assert [arm["name"] for arm in told["arms"]] == ["control", "bold"]
    assert sum(arm["judged"] for arm in told["arms"]) == 4000
    (bold,) = told["treatments"]
    assert bold["advice"] == "ship"
    assert bold["cost_usd"]["difference"] == pytest.approx(-0.015, abs=0.001)
    assert bold["cost_usd"]["upper"] < 0
    assert bold["pass_rate"]["lower"] > -0.05
    assert told["stopped"] is False


async def test_outcomes_of_the_ledger_label_an_experiment(ledger_url: str) -> None:
    """Feedback tells passes; calls that tools refused trip the guardrail by themselves, without a file of labels."""
    rows = exposed_rows(1500, invalid={"control": 0.02, "bold": 0.02})
    await written(ledger_url, rows)
    async with Ledger.open(ledger_url) as ledger:
        refused = [row for i, row in enumerate(rows) if row.arm == "bold" and i % 3 == 0]
        seen = {"strength": "strong", "reason": "status_422", "fault": "call", "label": 0}
        fine = {"strength": "weak", "reason": "progress", "fault": "none", "label": 1}
        made = [
            outcome(decision_id=row.decision_id, at=row.created_at, **(seen if row in refused else fine))
            for row in rows
        ]
        told = [replace(one, source="feedback", label=1, strength="strong") for one in made[:50]]
        await record(ledger.engine, [*made, *told])
    assignment = _assignment()
    watch = Watch(ledger_url, Experiment.model_validate(TWO_ARMS), assignment, SOON)
    await watch.refresh()
    assert assignment.stopped
    async with Ledger.open(ledger_url) as ledger:
        found = await experiment_state(ledger, "trial", Experiment.model_validate(TWO_ARMS), {}, 4e9, 3600.0)
    assert sum(arm.judged for arm in found.arms) == 50
    (bold,) = found.treatments
    assert {rail.name for rail in bold.guardrails if rail.tripped_at} == {"tool_errors"}


def test_without_labels_the_status_says_so_and_does_not_ship(tmp_path: Path) -> None:
    rows = exposed_rows(2000, invalid={"control": 0.02, "bold": 0.4})
    config = _config(tmp_path, asyncio.run(written(tmp_path, rows)))
    shown = _status("trial", "--config", str(config))
    assert "pass rate: not known: no request of a closed unit was judged" in shown.output
    assert "guardrail invalid_calls (limit 0.05): GONE after" in shown.output
    assert "guardrail tool_errors (limit 0.02): too few units" in shown.output
    assert "stop: a guardrail has gone" in shown.output


def test_a_request_costs_its_draft_its_answer_and_its_audit_and_unknown_costs_are_left_out(tmp_path: Path) -> None:
    """Small answers of 0.001 $, every second one audited for 0.01 $, against large answers that have a draft as well:
    told in full, unknown, cut short, and of an open circuit in turn."""
    draft, answer = 1_000_000, 20_000_000
    rows = exposed_rows(400, invalid={"control": 0.0, "bold": 0.0})
    large: list[dict[str, Any]] = [
        {"large_cost_nusd": answer},
        {"large_cost_nusd": None},
        {"large_cost_nusd": None, "large_estimate_nusd": answer},
        {"large_cost_nusd": None, "large_attempts": 0, "side": "none"},
    ]
    arms = {name: [row for row in rows if row.arm == name] for name in ("control", "bold")}
    small = [
        replace(row, side="small", large_model=None, large_cost_nusd=None, small_cost_nusd=draft)
        for row in arms["bold"][:100]
    ]
    others = [replace(row, small_cost_nusd=draft, **large[i % 4]) for i, row in enumerate(arms["control"][:100])]
    url = asyncio.run(written(tmp_path, [*small, *others]))

    async def audit() -> None:
        async with Ledger.open(url) as ledger:
            for row in small[::2]:
                made = replace(AUDIT, decision_id=row.decision_id, at=row.created_at, cost_nusd=10_000_000)
                await record_audit(ledger.engine, made)

    asyncio.run(audit())
    control, bold = json.loads(_status("trial", "--config", str(_config(tmp_path, url)), "--json").stdout)["arms"]
    assert bold["cost_usd"] == pytest.approx(0.001 + 0.01 / 2)
    assert control["cost_usd"] == pytest.approx(0.001 + 0.02 * 2 / 3)


def test_a_status_tells_what_was_judged_and_that_it_was_stopped(tmp_path: Path) -> None:
    """Feedback on closed units of one arm only, then on none that is closed; then the experiment is stopped."""
    rows = exposed_rows(400, invalid={"control": 0.0, "bold": 0.0})
    url = asyncio.run(written(tmp_path, rows))
    config = _config(tmp_path, url)
    judged = [row for row in rows if row.arm == "bold"][:3]

    async def say() -> None:
        async with Ledger.open(url) as ledger:
            said = (
                OutcomeLabel(
                    decision_id=row.decision_id, source="feedback", call_index=-1, at=row.created_at, label=1,
                    strength="strong", reason="thumbs", fault="none",
                )
                for row in judged
            )  # fmt: skip
            await record(ledger.engine, list(said))

    asyncio.run(say())
    shown = _status("trial", "--config", str(config)).output
    assert "pass rate: not known: too few requests were judged so far (control 0, bold 3)" in shown
    assert "\nenabled\n" in shown
    assert "continue: nothing is sure yet" in shown

    async def stop() -> None:
        async with Ledger.open(url) as ledger:
            await ExperimentStore(ledger.engine).stop(
                "trial", load_settings(config).experiments, datetime(2026, 5, 6, tzinfo=UTC)
            )

    asyncio.run(stop())
    shown = _status("trial", "--config", str(config)).output
    assert "stopped on 2026-05-06 00:00 UTC by hand; it does not begin again" in shown
    assert "stopped before anything was sure" in shown
    assert "continue" not in shown
    assert json.loads(_status("trial", "--config", str(config), "--json").stdout)["stopped"] is True


def test_an_empty_experiment_has_a_status(tmp_path: Path) -> None:
    config = _config(tmp_path, asyncio.run(written(tmp_path, [])))
    shown = _status("trial", "--config", str(config))
    assert shown.exit_code == 0, shown.output
    assert "continue: nothing is sure yet" in shown.output


def test_a_status_that_cannot_be_had_says_why(tmp_path: Path) -> None:
    rows = exposed_rows(5, invalid={"control": 0.0, "bold": 0.0})
    config = _config(tmp_path, asyncio.run(written(tmp_path, rows)))
    unknown = _status("other", "--config", str(config))
    assert (unknown.exit_code, "trial" in unknown.output) == (1, True)
    labels = tmp_path / "labels.jsonl"
    labels.write_text('{"decision_id": "a"}\n{"decision_id": "b", "passed": "yes"}\n')
    wrong = _status("trial", "--config", str(config), "--labels", str(labels))
    assert (wrong.exit_code, "line 2" in wrong.output) == (1, True)
    missing = _status("trial", "--config", str(config), "--labels", str(tmp_path / "none"))
    assert missing.exit_code == 1
    changed = _config(tmp_path, f"sqlite+aiosqlite:///{tmp_path / 'ledger.db'}", arms={"control": {}, "new": {}})
    renamed = _status("trial", "--config", str(changed))
    assert (renamed.exit_code, "bold" in renamed.output) == (1, True)


def test_planning_from_the_command_line() -> None:
    """An experiment of the planned size tells the difference as often as was asked for, by default 80 %."""
    planned = CliRunner().invoke(cli, ["ab", "plan", "--control", "0.8", "--treatment", "0.86"])
    units = int(planned.output.split()[0])
    rng = np.random.default_rng(7)
    found = simulate(0.8, 0.86, units=units, planned=units, runs=200, alpha=0.05, rng=rng)
    assert found.told >= binom.ppf(0.001, 200, 0.8)
    wrong = CliRunner().invoke(cli, ["ab", "plan", "--control", "0.8", "--treatment", "0.8"])
    assert (wrong.exit_code, "differ" in wrong.output) == (2, True)


@pytest.mark.parametrize(
    ("experiments", "named"),
    [
        ({"a": {"arms": {"control": {}}}}, "experiments.a.arms"),
        ({"a": {"arms": {"control": {"policy": {"kind": "small_only"}}, "b": {}}}}, "arms.control.policy"),
        ({"a": {"arms": {"control": {}, "b": {"policy": {"kind": "magic"}}}}}, "policy.kind"),
        ({"a": {"arms": {"control": {}, "b": {"weight": 0}}}}, "experiments.a.arms.b.weight"),
        ({"a": {"arms": {"control": {}, "B b": {}}}}, "experiments.a.arms"),
        ({"a": TWO_ARMS, "b": TWO_ARMS}, "a and b are enabled"),
        ({"a": {**TWO_ARMS, "salt": "x"}}, "experiments.a.salt: removed"),
        ({"a": {**TWO_ARMS, "alpha": 0}}, "experiments.a.alpha"),
    ],
)
def test_experiments_that_cannot_run_are_refused_at_the_start(
    tmp_path: Path, experiments: dict[str, Any], named: str
) -> None:
    file = tmp_path / "smallcall.yaml"
    file.write_text(json.dumps({"experiments": experiments}))
    with pytest.raises(SettingsError, match=named):
        load_settings(file, {})


def test_a_finished_experiment_may_stand_beside_a_running_one() -> None:
    made = Settings.model_validate({"experiments": {"old": {**TWO_ARMS, "enabled": False}, "new": TWO_ARMS}})
    assert made.experiments["old"].arms.keys() == {"control", "bold"}
