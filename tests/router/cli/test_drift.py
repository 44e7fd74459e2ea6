"""`smallcall drift` over a ledger whose traffic moved."""

import asyncio
import json
from datetime import timedelta
from pathlib import Path
from random import Random

from typer.testing import CliRunner

from router.__main__ import app as cli
from router.ledger.audits import record_audit
from router.ledger.store import Ledger
from tests.router.cli.test_costs import DAY, small, write
from tests.router.outcomes.test_shadow_audits import _audit


def test_a_shift_new_tools_and_a_rising_disagreement_are_told(ledger_url: str, tmp_path: Path) -> None:
    """Scores fell, half of the requests have tools that nobody saw before, and audits disagree where they agreed."""
    rng = Random(6)

    async def fill() -> None:
        async with Ledger.open(ledger_url) as ledger:
            rows = []
            for i in range(600):
                moved = i >= 300
                rows.append(
                    small(
                        f"{i:03}",
                        DAY + timedelta(days=40 if moved else 20, seconds=i),
                        score=rng.uniform(0.2, 0.7) if moved else rng.uniform(0.6, 1.0),
                        request_bytes=rng.randrange(1000, 2000),
                        tools_sha256="new" if moved and i % 2 else "old",
                        audit_propensity=0.5,
                    )
                )
            await write(ledger, rows)
            for i in range(600):
                await record_audit(ledger.engine, _audit(f"{i:03}", i < 300 or rng.random() < 0.4))

    asyncio.run(fill())
    file = tmp_path / "smallcall.yaml"
    file.write_text(json.dumps({"ledger": {"url": ledger_url}}))
    asked = ["drift", "--config", str(file), "--since", "2026-06-10", "--until", "2026-06-20"]
    told = json.loads(CliRunner().invoke(cli, [*asked, "--json"]).stdout)
    by_name = {one["name"]: one for one in told["shifts"]}
    assert by_name["score"]["psi"] > 0.25
    assert by_name["score"]["q_value"] < 0.001
    assert by_name["request_bytes"]["q_value"] > 0.001
    assert (told["requests"], told["new_tools"], told["audited"]) == (300, 150, 600)
    assert len(told["changes"]) >= 1
    assert told["changes"][-1]["after"] > told["changes"][0]["before"] + 0.2
    shown = CliRunner().invoke(cli, asked, env={"COLUMNS": "140"})
    assert "150 of 300 requests offer a set of tools that is new" in shown.stdout
    wrong = CliRunner().invoke(cli, ["drift", "--since", "soon"])
    assert (wrong.exit_code, "--since" in wrong.output) == (2, True)
