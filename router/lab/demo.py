"""Sixty real requests through a running gateway: what `smallcall demo` does.

Real parts throughout: the gateway and its worker run as processes of their own, the requests go over HTTP by the
official `openai` client, and the large model is a recording of GPT-4o served as an OpenAI-compatible endpoint. The
same requests are then drafted once more with the small side pinned: the report draws what other thresholds would do.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai

from evaluation.cases.answers import Answer
from evaluation.cases.scoring import score
from evaluation.demo.rows import MODEL, DemoRow, load_demo
from evaluation.recorded.index import served_name
from evaluation.recorded.server import RecordedServer
from evaluation.recorded.trace import trace_of_recording
from evaluation.report.content import Options, report_of
from evaluation.report.sheet import Sheet
from evaluation.report.write import ReportPaths, summary, write_report
from evaluation.traces.client import ClientPrices, Endpoint
from evaluation.traces.collect import Progress, collect
from router.lab.gateway_process import gateway_process
from router.settings import Settings

GPT_4O = ClientPrices(input_usd_per_mtok=2.5, output_usd_per_mtok=10.0)
"""Prices of gpt-4o-2024-08-06, as in litellm's price map; a test holds the two together."""
CONCURRENCY = 2

OnProgress = Callable[[str, int, int | None], None]


@dataclass(frozen=True, slots=True)
class Asked:
    """One request of the demo and what came back."""

    passed: bool
    large_passed: bool
    side: str
    cost_usd: float
    large_cost_usd: float
    latency_s: float


@dataclass(frozen=True, slots=True)
class DemoResult:
    """The results that the demo prints."""

    asked: Sequence[Asked]
    report: ReportPaths
    ways: Sheet
    """All ways to answer."""

    @property
    def rows(self) -> list[tuple[str, str, str]]:
        """Name, smallcall, always large."""
        n = len(self.asked)
        cost, large = (sum(getattr(a, f) for a in self.asked) for f in ("cost_usd", "large_cost_usd"))
        small = sum(a.side == "small" for a in self.asked)
        passed, large_passed = sum(a.passed for a in self.asked), sum(a.large_passed for a in self.asked)
        return [
            ("pass rate", f"{passed}/{n} = {passed / n:.1%}", f"{large_passed}/{n} = {large_passed / n:.1%}"),
            ("answered small", f"{small}/{n} = {small / n:.1%}", "0"),
            ("cost of the large model", f"${cost:.5f} = {cost / large:.1%}", f"${large:.5f}"),
            (
                "median latency, measured",
                f"{statistics.median(a.latency_s for a in self.asked):.2f} s",
                "replayed at once",
            ),
        ]


async def run_demo(
    settings: Settings, model_folder: Path, folder: Path, on_progress: OnProgress, *, requests: int = 60
) -> DemoResult:
    """Run it; the report goes into `folder`, which exists. Raises RuntimeError where the gateway does not come up."""
    rows = load_demo()[:requests]
    cases = [row.case for row in rows]
    answers = [row.recorded for row in rows]
    async with (
        RecordedServer(answers, cases) as upstream,
        gateway_process(settings, model_folder, folder, large=(f"openai/{served_name(MODEL)}", upstream.url)) as url,
    ):
        asked = await _ask(url, rows, on_progress)

        def show(progress: Progress) -> None:
            on_progress("drafting with the small side pinned", progress.done, progress.total)

        endpoint = Endpoint(url, "smallcall/small", include_signals=True)
        small = await collect(
            cases,
            endpoint,
            folder / "small.parquet",
            command="smallcall demo",
            concurrency=CONCURRENCY,
            on_progress=show,
        )
    large = trace_of_recording(cases, answers, arm=served_name(MODEL), prices=GPT_4O, command="smallcall demo")
    options = Options(command="smallcall demo", commit=None, version="0.1.0")
    report = report_of(cases, small, large, options=options)
    return DemoResult(asked, write_report(report, folder), summary(report))


async def _ask(url: str, rows: Sequence[DemoRow], on_progress: OnProgress) -> list[Asked]:
    limit = asyncio.Semaphore(CONCURRENCY)
    done = 0
    async with openai.AsyncOpenAI(base_url=url, api_key="unused", max_retries=0, timeout=120) as client:

        async def one(row: DemoRow) -> Asked:
            nonlocal done
            async with limit:
                completion = await client.chat.completions.create(
                    model="gpt-4o",
                    messages=row.case.messages,  # type: ignore[arg-type]
                    tools=row.case.tools,  # type: ignore[arg-type]
                    extra_body={"smallcall": {"include": ["decision"]}},
                )
            done += 1
            on_progress("asking through the gateway", done, len(rows))
            extras: dict[str, Any] = completion.model_extra["smallcall"] if completion.model_extra else {}
            answer = Answer.from_message(completion.choices[0].message.model_dump())
            recorded = row.recorded
            return Asked(
                passed=score(row.case, answer).passed,
                large_passed=score(row.case, recorded.answer).passed,
                side=extras["side"],
                cost_usd=extras["cost_usd"] or 0.0,
                large_cost_usd=GPT_4O.cost_usd(recorded.input_tokens or 0, recorded.output_tokens or 0),
                latency_s=extras["latency_s"],
            )

        return list(await asyncio.gather(*(one(row) for row in rows)))
