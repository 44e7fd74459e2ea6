"""200 BFCL cases through a real gateway, whole and streamed: `make acceptance`. Minutes; not part of `make test`.

Checks that every answer has its row, that costs are usage times litellm's prices to the cent, that nothing is a 5xx,
that every call served by the small model is valid, and that streamed answers equal whole ones call for call.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections import Counter
from pathlib import Path

from evaluation.cases.study_data import StudyData
from evaluation.recorded.index import served_name
from evaluation.recorded.server import RecordedServer
from evaluation.traces.client import Endpoint
from evaluation.traces.collect import collect
from evaluation.traces.table import Trace, calls_of, draft_of, request_of
from policies.types import Outcome
from policies.validation import check
from router.lab.demo import GPT_4O
from router.lab.gateway_process import gateway_process
from router.ledger.store import Ledger
from router.settings import load_settings
from slm.weights.registry import resolve_model

MODEL = "gpt-4o-2024-08-06-FC"
CASES = 200


async def run(folder: Path, count: int) -> dict[str, object]:
    """The figures; raises AssertionError where one is not as it must be."""
    data = StudyData.of_checkout()
    answers = {answer.id: answer for answer in data.recording(MODEL)}
    answered = [case for case in data.bfcl() if case.id in answers]
    cases = answered[:: max(1, len(answered) // count)][:count]
    settings = load_settings()
    model = resolve_model(settings.small.model, settings.cache_folder).path
    traces: dict[bool, Trace] = {}
    async with (
        RecordedServer([answers[case.id] for case in cases], cases) as upstream,
        gateway_process(settings, model, folder, large=(f"openai/{served_name(MODEL)}", upstream.url)) as url,
    ):
        for stream in (False, True):
            endpoint = Endpoint(url, "gpt-4o", stream=stream, include_signals=True)
            out = folder / f"{stream}.parquet"
            traces[stream] = await collect(cases, endpoint, out, command="make acceptance", concurrency=2)
    async with Ledger.open(f"sqlite+aiosqlite:///{folder / 'ledger.db'}") as ledger:
        rows = {row.decision_id: row for row in await ledger.page(limit=100_000)}
    assert len(rows) == 2 * len(cases), len(rows)
    for trace in traces.values():
        assert all(row.status == 200 for row in trace.rows), Counter(row.status for row in trace.rows)
        assert all(row.decision_id in rows for row in trace.rows)
    billed = sum(GPT_4O.cost_usd(r.large_prompt_tokens or 0, r.large_completion_tokens or 0) for r in rows.values())
    spent = sum(row.large_cost_nusd or 0 for row in rows.values()) / 1e9
    assert abs(spent - billed) < 0.01, (spent, billed)
    by_id = {case.id: case for case in cases}
    small = 0
    for whole, streamed in zip(traces[False].rows, traces[True].rows, strict=True):
        assert (whole.side, calls_of(whole.calls)) == (streamed.side, calls_of(streamed.calls)), whole.case_id
        if whole.side == "small":
            small += 1
            draft = draft_of(whole)
            assert draft.outcome is Outcome.CALLS
            assert check(request_of(by_id[whole.case_id]), draft) == ()
    return {
        "cases": len(cases),
        "rows": len(rows),
        "spent_usd": round(spent, 6),
        "usage_times_price_usd": round(billed, 6),
        "answered_small": small,
        "passed": sum(row.passed is True for row in traces[False].rows),
        "reasons": dict(Counter(row.reason for row in traces[False].rows)),
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        print(asyncio.run(run(Path(temporary), int(sys.argv[1]) if len(sys.argv) > 1 else CASES)))
