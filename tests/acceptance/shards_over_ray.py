"""Sixty recorded answers collected over Ray and without it: the tables must be equal. `make test-ray`.

Needs Ray (extra `ray`), which the lock file leaves out; without it this fails and says how to get it. `make test` runs
the same shards in processes of its own.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

import msgspec

from evaluation.cases.study_data import StudyData
from evaluation.recorded.index import served_name
from evaluation.recorded.server import RecordedServer
from evaluation.traces.client import Endpoint
from evaluation.traces.collect import collect
from evaluation.traces.sharded import RayUnavailableError, collect_sharded, with_ray
from evaluation.traces.table import Trace, TraceRow, read_trace

MODEL = "gpt-4o-2024-08-06-FC"
CASES = 60
SHARD = 20


async def run(folder: Path) -> int:
    """How many rows are equal; raises AssertionError where one is not."""
    data = StudyData.of_checkout()
    answers = {answer.id: answer for answer in data.recording(MODEL)}
    cases = [case for case in data.bfcl() if case.id in answers][:CASES]
    async with RecordedServer([answers[case.id] for case in cases], cases) as server:
        endpoint = Endpoint(server.url, served_name(MODEL))
        plain = await collect(cases, endpoint, folder / "plain.parquet", command="make test-ray")

        def over_ray() -> Trace:
            out = folder / "ray.parquet"
            return collect_sharded(cases, [endpoint], out, command="make test-ray", shard_size=SHARD, executor=with_ray)

        await asyncio.to_thread(over_ray)
    assert _timeless(read_trace(folder / "ray.parquet")) == _timeless(plain)
    assert read_trace(folder / "ray.parquet").info == plain.info
    return len(plain.rows)


def _timeless(trace: Trace) -> list[TraceRow]:
    return [msgspec.structs.replace(row, started_at=None, latency_s=None, ttft_s=None) for row in trace.rows]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        try:
            told = f"{asyncio.run(run(Path(made)))} rows over Ray equal those without it\n"
        except RayUnavailableError as error:
            sys.exit(str(error))
    sys.stdout.write(told)
