"""What was spent, what always asking the large model would have cost, and that neither loses a cent."""

import asyncio
import csv
import io
import json
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

import pytest
from typer.testing import CliRunner

from evaluation.live.costs import total, totals
from router.__main__ import app as cli
from router.access.keys import new_key
from router.access.store import KeyStore
from router.ledger.queries.costs import cost_lines, span
from router.ledger.retention import prune
from router.ledger.row import DecisionRow, nano_usd
from router.ledger.store import Ledger
from router.settings import Price
from router.upstream.large_model import Usage
from router.upstream.prices import FixedPrices
from tests.router.ledger.test_store import row

DAY = datetime(2026, 5, 4, tzinfo=UTC)
PRICE = Price(input_usd_per_mtok=2.5, output_usd_per_mtok=10, cached_input_usd_per_mtok=1.25)


def large(name: str, at: datetime = DAY, **changes: Any) -> DecisionRow:
    """Answered by the large model, with a call of 40 tokens and a prompt of 300 in 1,000 bytes."""
    told = {
        "large_model": "openai/gpt-4o",
        "large_attempts": 1,
        "large_prompt_tokens": 300,
        "large_completion_tokens": 40,
        "large_cached_tokens": 0,
        "large_cost_nusd": 1_150_000,
        "tool": "get_weather",
        "request_bytes": 1000,
    }
    return row(name, created_at=at, side="large", reason="low_confidence", **{**told, **changes})


def small(name: str, at: datetime = DAY, **changes: Any) -> DecisionRow:
    """Answered by the small one: 2,000 bytes, while the large model's price was known."""
    told = {
        "small_model": "m",
        "small_prompt_tokens": 90,
        "small_completion_tokens": 30,
        "small_cost_nusd": 2_000,
        "tool": "get_weather",
        "request_bytes": 2000,
        "large_input_usd_per_mtok": 2.5,
        "large_cached_input_usd_per_mtok": 1.25,
        "large_output_usd_per_mtok": 10.0,
    }
    return row(name, created_at=at, side="small", reason="accepted", **{**told, **changes})


async def write(ledger: Ledger, rows: list[DecisionRow]) -> None:
    await asyncio.gather(*(ledger.write(one) for one in rows))


async def test_spending_reconciles_with_the_providers_usage_to_the_cent(ledger_url: str) -> None:
    """Two and a half thousand random answers, cached tokens among them: the ledger's sum is the invoice."""
    rng, prices = Random(5), FixedPrices(PRICE)
    invoice, rows = Decimal(0), []
    for i in range(2500):
        prompt, completion = rng.randrange(1, 200_000), rng.randrange(0, 20_000)
        cached = rng.choice([0, rng.randrange(0, prompt + 1)])
        usage = Usage(prompt, completion, cached, {})
        thousandths = (prompt - cached) * Decimal("2.5") + cached * Decimal("1.25") + completion * Decimal(10)
        invoice += thousandths / 1_000_000
        rows.append(
            large(
                f"{i:05}",
                DAY + timedelta(seconds=rng.randrange(0, 5 * 86_400)),
                large_prompt_tokens=prompt,
                large_completion_tokens=completion,
                large_cached_tokens=cached,
                large_cost_nusd=nano_usd(prices.cost_usd(usage)),
                tool=rng.choice(["a", "b", None]),
            )
        )
    async with Ledger.open(ledger_url) as ledger:
        await write(ledger, rows)
        found = await cost_lines(ledger.engine, DAY.date(), DAY.date() + timedelta(days=4))
    for by in ("day", "key", "tool", "arm"):
        whole = total(totals(found, by))  # type: ignore[arg-type]
        assert whole.requests == 2500
        assert abs(Decimal(whole.large_nusd) / 10**9 - invoice) < Decimal("0.005")
        assert (whole.large_prompt_tokens, whole.large_cached_tokens) == (
            sum(one.large_prompt_tokens or 0 for one in rows),
            sum(one.large_cached_tokens or 0 for one in rows),
        )


async def test_the_alternative_is_the_requests_own_size_and_the_tenants_mean_answer(ledger_url: str) -> None:
    """Twenty large calls of 40 tokens, 0.3 tokens a byte, a third cached; then a small answer to 2,000 bytes."""
    rows = [large(f"l{i:02}", large_cached_tokens=100) for i in range(20)]
    rows += [large("prose", tool=None, large_prompt_tokens=300, large_completion_tokens=5000, large_cached_tokens=100)]
    async with Ledger.open(ledger_url) as ledger:
        await write(ledger, [*rows, small("s")])
        found = await cost_lines(ledger.engine, DAY.date(), DAY.date())
    (answered,) = (line for line in found if line.side == "small")
    prompt = 2000 * 0.3
    expected = prompt * (2 / 3 * 2.5 + 1 / 3 * 1.25) + 40 * 10  # USD per million tokens
    assert answered.always_large_nusd == pytest.approx(expected * 1000, abs=1)
    assert answered.small_nusd == 2_000
    everything = total(totals(found, "day"))
    assert everything.saved_nusd == answered.always_large_nusd - 2_000
    assert everything.share_small == pytest.approx(1 / 22)


async def test_without_large_answers_the_alternative_is_the_draft_itself(ledger_url: str) -> None:
    """Four bytes a token, and the draft's own length."""
    async with Ledger.open(ledger_url) as ledger:
        await write(ledger, [small("s"), small("t", large_input_usd_per_mtok=None)])
        (line,) = await cost_lines(ledger.engine, DAY.date(), DAY.date())
    assert line.always_large_nusd == round((500 * 2.5 + 30 * 10) * 1000)
    assert (line.requests, line.unpriced) == (2, 1)


async def test_what_is_not_known_is_counted_and_costs_nothing(ledger_url: str) -> None:
    """Unreported usage, an open circuit, an estimate, an error: each in its own count."""
    rows = [
        large("a", large_cost_nusd=None, large_prompt_tokens=None, large_completion_tokens=None),
        replace(large("b", large_attempts=0, large_cost_nusd=None), side="none", status=503),
        large("c", large_estimate_nusd=70, large_cost_nusd=30),
        replace(small("d"), reason="upstream_unavailable", large_model="m", large_attempts=3),
    ]
    async with Ledger.open(ledger_url) as ledger:
        await write(ledger, rows)
        whole = total(totals(await cost_lines(ledger.engine, DAY.date(), DAY.date()), "tool"))
        assert await span(ledger.engine) == (DAY.date(), DAY.date())
    assert (whole.requests, whole.failed, whole.unpriced, whole.estimated) == (4, 1, 1, 1)
    assert (whole.large_nusd, whole.large_estimate_nusd, whole.always_large_nusd) == (30, 70, 100)


async def test_days_end_at_midnight_utc(ledger_url: str) -> None:
    """On both kinds of databases, whatever the machine's zone."""
    midnight = datetime(2026, 5, 5, tzinfo=UTC)
    rows = [large("a", midnight - timedelta(microseconds=1)), large("b", midnight)]
    async with Ledger.open(ledger_url) as ledger:
        await write(ledger, rows)
        found = totals(await cost_lines(ledger.engine, date(2026, 5, 1), date(2026, 5, 9)), "day")
    assert [(one.label, one.requests) for one in found] == [("2026-05-04", 1), ("2026-05-05", 1)]


HOSTILE = "</script><img src=x onerror=alert(1)>\u202e"


def _costs(folder: Path, url: str, *arguments: str, name: tuple[str, ...] = ("costs",)) -> str:
    file = folder / "smallcall.yaml"
    file.write_text(json.dumps({"ledger": {"url": url}, "small": {"usd_per_hour": 0.5}}))
    found = CliRunner().invoke(cli, [*name, "--config", str(file), *arguments], env={"COLUMNS": "200"})
    assert found.exit_code == 0, found.output
    return found.stdout


@pytest.fixture
def told(ledger_url: str) -> str:
    """A ledger of two days, two tools, an arm; one of the tools has a hostile name."""

    async def fill() -> None:
        async with Ledger.open(ledger_url) as ledger:
            await write(
                ledger,
                [
                    large("a"),
                    large("b", DAY + timedelta(days=1), tool=HOSTILE, experiment="trial", arm="bold"),
                    small("c", key_id="k1"),
                    large("d", tool="=cmd|calc"),
                ],
            )

    asyncio.run(fill())
    return ledger_url


def test_the_command_tells_every_form_the_same(told: str, tmp_path: Path) -> None:
    """Terminal, JSON, CSV and HTML."""
    as_json = json.loads(_costs(tmp_path, told, "--by", "tool", "--format", "json"))
    assert as_json["total"]["requests"] == 4
    assert as_json["total"]["spent_nusd"] == 3 * 1_150_000 + 2_000
    assert {row["label"] for row in as_json["rows"]} == {"get_weather", HOSTILE, "=cmd|calc"}
    assert sum(row["saved_nusd"] for row in as_json["rows"]) == as_json["total"]["saved_nusd"]
    rows = list(csv.DictReader(io.StringIO(_costs(tmp_path, told, "--by", "tool", "--format", "csv"))))
    assert [int(row["spent_nusd"]) for row in rows] == [row["spent_nusd"] for row in as_json["rows"]]
    assert {row["label"][0] for row in rows} == {"g", "<", "'"}
    shown = _costs(tmp_path, told, "--by", "tool")
    assert "get_weather" in shown
    assert "0.0035" in shown  # spent in all
    assert "\u202e" not in shown
    out = tmp_path / "costs.html"
    assert _costs(tmp_path, told, "--by", "tool", "--format", "html", "--out", str(out)) == ""
    page = out.read_text(encoding="utf-8")
    assert "&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;" in page
    assert "<script" not in page
    assert "\u202e" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_days_and_arms_are_told_apart(told: str, tmp_path: Path) -> None:
    """By day within bounds, by arm with its experiment, by key."""
    by_day = json.loads(_costs(tmp_path, told, "--format", "json", "--since", "2026-05-05"))
    assert [(row["label"], row["requests"]) for row in by_day["rows"]] == [("2026-05-05", 1)]
    by_arm = json.loads(_costs(tmp_path, told, "--by", "arm", "--format", "json"))
    assert [(row["label"], row["requests"]) for row in by_arm["rows"]] == [("(no experiment)", 3), ("trial:bold", 1)]
    by_key = json.loads(_costs(tmp_path, told, "--by", "key", "--format", "json", name=("report", "costs")))
    assert [(row["label"], row["requests"]) for row in by_key["rows"]] == [("(no key)", 3), ("k1", 1)]


def test_costs_are_told_by_what_people_know(ledger_url: str, tmp_path: Path) -> None:
    """Names of keys and tenants instead of ids, models, reasons and hours; two keys of one name are told apart, and
    rolled-up days tell neither models nor hours. All say the same total."""

    async def fill() -> list[str]:
        async with Ledger.open(ledger_url) as ledger:
            store = KeyStore(ledger.engine)
            asked = [{"name": "ci", "tenant": "acme"}, {"name": "agents"}, {"name": "agents", "tenant": "acme"}]
            keys = [(await store.create(new_key(one), DAY))[0].key_id for one in asked]
            rows = [
                large("a", DAY + timedelta(hours=1), key_id=keys[0]),
                small("b", DAY + timedelta(hours=13), key_id=keys[1]),
                large("c", DAY + timedelta(hours=13, minutes=59), key_id=keys[2]),
                small("d", DAY + timedelta(hours=14), key_id="gone"),
                large("old", DAY - timedelta(days=9)),
            ]
            await write(ledger, rows)
            assert (await prune(ledger.engine, 5, DAY)).rows == 1
            return keys

    keys = asyncio.run(fill())

    def told(by: str) -> dict[str, int]:
        found = json.loads(_costs(tmp_path, ledger_url, "--by", by, "--format", "json"))
        assert found["total"]["spent_nusd"] == 3 * 1_150_000 + 2 * 2_000
        return {row["label"]: row["requests"] for row in found["rows"]}

    agents = {f"agents ({key_id})": 1 for key_id in keys[1:]}
    assert told("key") == {"ci": 1, **agents, "gone": 1, "(no key)": 1}
    assert told("tenant") == {"acme": 2, "(no tenant)": 3}
    assert told("model") == {"openai/gpt-4o": 2, "m": 2, "(none, or rolled up)": 1}
    assert told("reason") == {"low_confidence": 3, "accepted": 2}
    assert told("hour") == {
        "2026-04-25 (rolled up)": 1,
        "2026-05-04 01:00": 1,
        "2026-05-04 13:00": 2,
        "2026-05-04 14:00": 1,
    }


def test_an_empty_ledger_has_a_report_and_a_missing_one_an_error(ledger_url: str, tmp_path: Path) -> None:
    """Exit code 1 where it cannot be read, 2 where a day is none."""
    assert json.loads(_costs(tmp_path, ledger_url, "--format", "json"))["total"]["requests"] == 0
    runner = CliRunner()
    gone = {"SMALLCALL_LEDGER__URL": "postgresql+asyncpg://nobody@127.0.0.1:1/none"}
    assert runner.invoke(cli, ["costs"], env=gone).exit_code == 1
    wrong = runner.invoke(cli, ["costs", "--since", "yesterday"])
    assert (wrong.exit_code, "--since" in wrong.output) == (2, True)
