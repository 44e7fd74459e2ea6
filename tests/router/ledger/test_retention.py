"""The ledger does not grow for ever, and what it told before it tells afterwards; exports stay small in memory."""

import asyncio
import json
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from sqlalchemy import func, select
from typer.testing import CliRunner

from evaluation.live.costs import CostLine, totals
from router.__main__ import app as cli
from router.ledger import export as exporting
from router.ledger import retention
from router.ledger.outcomes import record
from router.ledger.queries.costs import cost_lines, span
from router.ledger.retention import Pruned, Retention, prune
from router.ledger.row import LargeCall
from router.ledger.store import Ledger
from router.ledger.tables import access_spend, calls, outcomes, rollups
from router.server.app import create_app
from router.settings import Settings
from tests.router.cli.test_costs import DAY, large, small, write
from tests.router.conftest import served
from tests.router.ledger.test_store import row
from tests.router.outcomes.test_labels import outcome

NOW = DAY + timedelta(days=40)


async def _rest(_: float) -> None:
    await asyncio.sleep(0)


def _days() -> list[Any]:
    """Five days with thirty large and ten small answers each, some of them cut short, some in an arm."""
    rows = []
    for day in range(5):
        at = DAY + timedelta(days=day, hours=3)
        rows += [
            large(f"{day}l{i:02}", at, experiment="e" if i % 2 else None, arm="a" if i % 2 else None) for i in range(30)
        ]
        rows += [small(f"{day}s{i:02}", at, tool=f"f{i % 3}") for i in range(10)]
        rows += [large(f"{day}c", at, large_cost_nusd=None, large_estimate_nusd=5)]
    return rows


async def _lines(ledger: Ledger) -> list[CostLine]:
    return await cost_lines(ledger.engine, DAY.date(), DAY.date() + timedelta(days=60))


async def test_a_report_is_the_same_before_and_after(ledger_url: str) -> None:
    """To the nano-dollar, by every grouping, though rows are gone; days that are young enough keep theirs."""
    async with Ledger.open(ledger_url) as ledger:
        await write(ledger, _days())
        await ledger.write(large("with-call", DAY), [LargeCall("call_x", "f")])
        await record(ledger.engine, [outcome(decision_id="with-call")])
        before, known = await _lines(ledger), await span(ledger.engine)
        done = await prune(ledger.engine, 38, NOW, _rest)
        assert done == Pruned(days=2, rows=83)
        assert await ledger.count() == 3 * 41
        assert await _lines(ledger) == before
        assert await span(ledger.engine) == known
        assert await prune(ledger.engine, 38, NOW, _rest) == Pruned(0, 0)
        assert await prune(ledger.engine, 1, NOW, _rest) == Pruned(days=3, rows=123)
        after = await _lines(ledger)
        async with ledger.engine.connect() as connection:
            left = [(await connection.execute(select(func.count()).select_from(t))).scalar() for t in (calls, outcomes)]
    key = lambda line: (line.day, line.tool, line.experiment, line.arm, line.side, line.reason)  # noqa: E731
    assert sorted(after, key=key) == sorted(before, key=key)
    assert left == [0, 0]
    for by in ("day", "key", "tool", "arm"):
        assert totals(after, by) == totals(before, by)  # type: ignore[arg-type]


async def test_what_is_kept_of_a_day_does_not_grow_with_the_names_of_tools(ledger_url: str) -> None:
    """A hundred tools of each key, those with the most requests; the others' sums are not lost."""
    twice = [large(f"{name:03}{i}", DAY, key_id="k", tool=f"f{name}") for name in range(100) for i in range(2)]
    rest = [large(f"r{name}", DAY, key_id="k", tool=f"rare{name}") for name in range(5)]
    others = [large("other", DAY, key_id="another", tool="rare0"), large("none", DAY, key_id="k", tool=None)]
    async with Ledger.open(ledger_url) as ledger:
        await write(ledger, [*twice, *rest, *others])
        before = await _lines(ledger)
        await prune(ledger.engine, 38, NOW, _rest)
        after = await _lines(ledger)
    assert totals(after, "key") == totals(before, "key")
    names = {(line.key_id, line.tool): line.requests for line in after}
    assert names.pop(("k", "(other)")) == 5
    assert names == {**{("k", f"f{i}"): 2 for i in range(100)}, ("another", "rare0"): 1, ("k", ""): 1}


async def test_days_of_spending_go_with_their_rows_and_longer_windows_stay(ledger_url: str) -> None:
    young = NOW - timedelta(days=1)
    async with Ledger.open(ledger_url) as ledger:
        rows = [large("old", DAY, key_id="k", charged_nusd=3), large("young", young, key_id="k", charged_nusd=4)]
        await write(ledger, rows)
        await prune(ledger.engine, 38, NOW, _rest)
        async with ledger.engine.connect() as connection:
            spent = {row.period: row.spent_nusd for row in await connection.execute(select(access_spend))}
    assert spent == {"2026-05": 3, "2026-06": 4, "2026-06-12": 4, "total": 7}


async def test_a_day_that_is_half_deleted_is_counted_once(ledger_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway is killed between two batches; the next start finishes the day."""
    monkeypatch.setattr(retention, "BATCH", 7)

    async def killed(_: float) -> None:
        raise asyncio.CancelledError

    async with Ledger.open(ledger_url) as ledger:
        await write(ledger, _days())
        before = totals(await _lines(ledger), "day")
        with pytest.raises(asyncio.CancelledError):
            await prune(ledger.engine, 39, NOW, killed)
        assert await ledger.count() == 5 * 41 - 7
        assert totals(await _lines(ledger), "day") == before
        assert await prune(ledger.engine, 39, NOW, _rest) == Pruned(days=0, rows=41 - 7)
        assert totals(await _lines(ledger), "day") == before


async def test_two_gateways_prune_the_same_days(ledger_url: str) -> None:
    """Each day is rolled up once."""
    async with Ledger.open(ledger_url) as one, Ledger.open(ledger_url) as other:
        await write(one, _days())
        before = totals(await _lines(one), "tool")
        done = await asyncio.gather(*(prune(ledger.engine, 1, NOW, _rest) for ledger in (one, other)))
        assert sum(part.days for part in done) == 5
        assert totals(await _lines(other), "tool") == before
        assert await one.count() == 0


async def test_writers_are_not_held_up(ledger_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While four hundred rows are deleted in small batches, each write is committed soon."""
    monkeypatch.setattr(retention, "BATCH", 50)
    clock = asyncio.get_running_loop().time
    waits = []
    async with Ledger.open(ledger_url) as ledger:
        await write(ledger, [large(f"{i:04}") for i in range(400)])
        pruning = asyncio.create_task(prune(ledger.engine, 1, NOW))
        while not pruning.done():
            began = clock()
            await ledger.write(row(f"new{len(waits)}", created_at=NOW))
            waits.append(clock() - began)
            await asyncio.sleep(0.005)
        assert (await pruning).rows == 400
        assert await ledger.count() == len(waits)
    assert len(waits) > 5
    assert sorted(waits)[len(waits) // 2] < 0.25


async def test_a_running_gateway_prunes_by_itself(ledger_url: str) -> None:
    """At its start and then every hour; with `ledger.keep_days` only."""
    async with Ledger.open(ledger_url) as ledger:
        await write(ledger, _days())
    settings = Settings.model_validate({"ledger": {"url": ledger_url, "keep_days": 30}})
    async with served(create_app(settings)), Ledger.open(ledger_url) as ledger, asyncio.timeout(10):
        while await ledger.count():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        async with ledger.engine.connect() as connection:
            kept = (await connection.execute(select(func.sum(rollups.c.requests)))).scalar()
    assert int(kept or 0) == 205


async def test_a_round_that_fails_is_followed_by_another(ledger_url: str) -> None:
    """The table is away for one round."""
    rounds = 0

    async with Ledger.open(ledger_url) as ledger:
        await write(ledger, _days())

        async def sleep(seconds: float) -> None:
            nonlocal rounds
            if seconds == retention.EVERY_S:
                rounds += 1
                if rounds == 2:
                    raise asyncio.CancelledError
                async with ledger.engine.begin() as connection:
                    await connection.exec_driver_sql("ALTER TABLE hidden RENAME TO rolled_days")

        async with ledger.engine.begin() as connection:
            await connection.exec_driver_sql("ALTER TABLE rolled_days RENAME TO hidden")
        with pytest.raises(asyncio.CancelledError):
            await Retention(ledger.engine, 1, lambda: NOW, sleep).run()
        assert await ledger.count() == 0


def _config(folder: Path, url: str) -> str:
    file = folder / "smallcall.yaml"
    file.write_text(json.dumps({"ledger": {"url": url}}))
    return str(file)


def test_pruning_from_the_command_line(ledger_url: str, tmp_path: Path) -> None:
    """By the option, for a ledger that keeps all by itself; without any number it asks for one."""

    async def fill() -> None:
        async with Ledger.open(ledger_url) as ledger:
            await write(ledger, _days())
            await ledger.write(row("young", created_at=datetime.now(UTC)))

    asyncio.run(fill())
    config = _config(tmp_path, ledger_url)
    runner = CliRunner()
    assert runner.invoke(cli, ["ledger", "prune", "--config", config]).exit_code == 2
    done = runner.invoke(cli, ["ledger", "prune", "--config", config, "--keep-days", "7"])
    assert (done.exit_code, done.stdout) == (0, "5 days rolled up, 205 rows deleted\n")


def test_an_export_holds_every_column_and_what_is_known(
    ledger_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In several row groups, between two days, with outcomes beside the rows."""
    monkeypatch.setattr(exporting, "GROUP_ROWS", 50)
    monkeypatch.setattr(exporting, "_PAGE", 20)
    rows = [
        *_days(),
        replace(large("z", DAY + timedelta(days=1)), content={"request": {"é": 1}}, findings=("x",)),
    ]

    async def fill() -> None:
        async with Ledger.open(ledger_url) as ledger:
            await write(ledger, rows)
            told = {"strength": "strong", "fault": "call"}
            await record(
                ledger.engine,
                [
                    outcome(decision_id="z", label=0, **told),
                    outcome(decision_id="1l00", source="feedback", label=1, **told),
                ],
            )

    asyncio.run(fill())
    out = tmp_path / "x.parquet"
    asked = ["ledger", "export", "--config", _config(tmp_path, ledger_url), "--out", str(out)]
    done = CliRunner().invoke(cli, [*asked, "--since", "2026-05-05", "--until", "2026-05-07"])
    assert done.exit_code == 0, done.output
    file = pq.ParquetFile(out)
    assert file.num_row_groups > 1
    table = file.read().to_pylist()
    assert len(table) == 3 * 41 + 1
    by_id = {one["decision_id"]: one for one in table}
    assert by_id["z"]["created_at"] == DAY + timedelta(days=1)
    assert json.loads(by_id["z"]["content"]) == {"request": {"é": 1}}
    assert (by_id["z"]["tool_error"], by_id["z"]["passed"]) == (True, None)
    assert (by_id["1l00"]["tool_error"], by_id["1l00"]["passed"]) == (None, True)
    assert by_id["1l00"]["large_cost_nusd"] == 1_150_000
    assert {one["created_at"].date() for one in table} == {date(2026, 5, day) for day in (5, 6, 7)}
    assert not list(tmp_path.glob("*.part"))


def test_an_export_that_cannot_be_written_says_so(ledger_url: str, tmp_path: Path) -> None:
    """And leaves nothing behind."""
    out = tmp_path / "none" / "x.parquet"
    done = CliRunner().invoke(cli, ["ledger", "export", "--config", _config(tmp_path, ledger_url), "--out", str(out)])
    assert (done.exit_code, str(out) in done.output) == (1, True)
