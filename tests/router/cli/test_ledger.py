"""`smallcall ledger list` and `ledger show`: finding one decision among many, and having it explained."""

import asyncio
import json
import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from router.__main__ import app as cli
from router.access.keys import new_key
from router.access.store import KeyStore
from router.cli.output.decision_text import REASONS
from router.dialects.exchange import new_decision_id
from router.ledger.audits import record_audit
from router.ledger.outcomes import OutcomeLabel, record
from router.ledger.queries.decisions import Wanted, query
from router.ledger.store import Ledger
from tests.router.cascade.test_gateway import CALL, Scripted, ask, post
from tests.router.cli.test_costs import DAY, large, small
from tests.router.conftest import Make, ScriptedSmall, served
from tests.router.outcomes.test_shadow_audits import _audit
from tests.router.selection.test_served_bundle import ASKED, bundle


def _id(minutes: int) -> str:
    return new_decision_id(int((DAY + timedelta(minutes=minutes)).timestamp() * 1000))


class Told:
    """A ledger with a small answer, a large one, a failure, one of an experiment; and the commands over it."""

    def __init__(self, url: str, folder: Path) -> None:
        self._file = folder / "smallcall.yaml"
        self._file.write_text(json.dumps({"ledger": {"url": url}}))
        self.ids = [_id(minute) for minute in range(5)]
        self.key = asyncio.run(self._fill(url))

    async def _fill(self, url: str) -> str:
        async with Ledger.open(url) as ledger:
            key, _ = await KeyStore(ledger.engine).create(new_key({"name": "ci", "tenant": "acme"}), DAY)
            explain = [
                {"signal": "min_logprob", "contribution": -2.5},
                {"signal": "n_tools", "contribution": 0.5},
            ]
            rows = [
                small(self.ids[0], score=0.91, threshold=0.8, probability=0.95, policy="bundle", outcome="calls"),
                large(self.ids[1], DAY + timedelta(days=1), score=0.42, threshold=0.8, content={"explain": explain}),
                replace(
                    large(self.ids[2], tool=None, status=502, error_code="upstream_failed"),
                    side="none", findings=("schema at /city: breaks 100%_enum",),
                ),
                small(self.ids[3], key_id=key.key_id, tenant="acme", tool="book"),
                small(self.ids[4], experiment="trial", arm="bold", arm_propensity=0.5),
            ]  # fmt: skip
            for row in rows:
                await ledger.write(row)
            await record_audit(ledger.engine, _audit(self.ids[0], False))
            said = OutcomeLabel(
                decision_id=self.ids[0], source="feedback", call_index=-1, at=DAY, label=0, strength="strong",
                reason="thumbs", fault="args", comment="wrong city\x1b[2J",
            )  # fmt: skip
            await record(ledger.engine, [said])
        return key.key_id

    def run(self, *arguments: str) -> Any:
        return CliRunner().invoke(cli, ["ledger", *arguments, "--config", str(self._file)])

    def listed(self, *filters: str) -> list[int]:
        """Which of them, by their places."""
        found = self.run("list", *filters, "--format", "json")
        assert found.exit_code == 0, found.output
        return [self.ids.index(one["decision_id"]) for one in json.loads(found.stdout)]


@pytest.fixture
def told(ledger_url: str, tmp_path: Path) -> Told:
    return Told(ledger_url, tmp_path)


def test_decisions_are_listed_by_every_filter_the_newest_first(told: Told) -> None:
    """Each alone, two together, page by page."""
    assert told.listed() == [4, 3, 2, 1, 0]
    assert told.listed("--side", "small") == [4, 3, 0]
    assert told.listed("--reason", "low_confidence") == [2, 1]
    assert told.listed("--tool", "book") == [3]
    assert told.listed("--key", "ci") == told.listed("--key", told.key) == [3]
    assert told.listed("--arm", "bold") == told.listed("--arm", "trial:bold") == [4]
    assert told.listed("--arm", "other:bold") == []
    assert told.listed("--error", "UPSTREAM") == [2]
    assert told.listed("--error", "100%_") == [2]
    assert told.listed("--error", "100_") == []
    assert told.listed("--since", "2026-05-04") == [4, 3, 2, 1, 0]
    assert told.listed("--since", "2026-05-05") == []
    assert told.listed("--side", "large", "--tool", "get_weather") == [1]
    assert told.listed("--limit", "2") == [4, 3]
    assert told.listed("--limit", "2", "--before", told.ids[3]) == [2, 1]
    page = told.run("list", "--limit", "2").stdout
    assert f"older ones: --before {told.ids[3]}" in page
    assert "trial:bold" in page
    unknown = told.run("list", "--key", "nobody")
    assert (unknown.exit_code, "there is no such key" in unknown.output) == (1, True)


def test_one_decision_is_explained_in_words(told: Told) -> None:
    """Who, why, score against threshold, signals, findings, cost, audit, outcome, key and arm."""
    right, refused, failed, keyed, drawn = (told.run("show", one).stdout for one in told.ids)
    assert "The small model answered with a call of get_weather, because its draft is valid" in right
    assert "Score 0.9100 reaches the threshold of 0.8000; probability of being right 95.0%." in right
    assert "$0.000002 for the draft" in right
    assert "does not agree" in right
    assert "OutcomeLabel of the answer: wrong (somebody said: thumbs, strong, fault args; 'wrong city" in right
    assert "\x1b" not in right
    assert "because the draft's score does not reach the threshold (low_confidence)" in refused
    assert "Score 0.4200 is below the threshold of 0.8000" in refused
    assert "adds to the judge's score: min_logprob -2.50; n_tools +0.50." in refused
    assert "$0.001150 for openai/gpt-4o" in refused
    assert "Nobody answered: HTTP 502, upstream_failed" in failed
    assert "Findings: schema at /city: breaks 100%_enum." in failed
    assert "Key: ci, tenant acme." in keyed
    assert "signals that spoke most are not kept" in keyed
    assert "Experiment trial, arm bold (drawn with probability 0.5)." in drawn
    assert "What came of it is not known" in drawn
    unknown = told.run("show", "nothing")
    assert (unknown.exit_code, "there is no such decision" in unknown.output) == (1, True)


async def test_a_page_is_read_from_the_index_of_ids(tmp_path: Path) -> None:
    """SQLite neither sorts nor reads all rows."""
    async with Ledger.open(f"sqlite+aiosqlite:///{tmp_path / 'ledger.db'}") as ledger:
        for wanted in (Wanted(), Wanted(side="large", reason="no_tools", since=DAY, error="x", before="z")):
            asked = query(wanted, 20).compile(ledger.engine.sync_engine, compile_kwargs={"literal_binds": True})
            async with ledger.engine.connect() as connection:
                plan = "\n".join(str(row[-1]) for row in await connection.execute(text(f"EXPLAIN QUERY PLAN {asked}")))
            assert "INDEX sqlite_autoindex_decisions_1" in plan, plan
            assert "TEMP B-TREE" not in plan, plan


def test_every_reason_of_the_api_has_its_words() -> None:
    """The table of docs/api.md and the sentences know the same reasons."""
    page = (Path(__file__).parents[3] / "docs" / "api.md").read_text(encoding="utf-8")
    table = page.split("## Reasons")[1].split("##")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(REASONS)


async def test_the_signals_that_spoke_are_kept_with_the_content(gateway: Make, tmp_path: Path) -> None:
    """A real gateway with a bundle, asked to explain: the command names the signal."""
    policy, _ = bundle(tmp_path / "b")
    app = gateway(small=ScriptedSmall(CALL), upstream=Scripted(), policy=policy, ledger={"store_content": True})
    async with served(app) as url:
        _, headers, _ = await post(url, ask(**ASKED))
    file = tmp_path / "smallcall.yaml"
    file.write_text(json.dumps({"ledger": {"url": f"sqlite+aiosqlite:///{tmp_path / 'ledger.db'}"}}))
    asked = ["ledger", "show", headers["x-smallcall-decision-id"], "--config", str(file)]
    told = await asyncio.to_thread(CliRunner().invoke, cli, asked)
    assert told.exit_code == 0, told.output
    assert "adds to the judge's score: weakest_token +0.99." in told.stdout
