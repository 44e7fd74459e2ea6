"""A trace collected in shards by many workers: `evaluation.traces.collect.collect` for each shard, one table in the
end.

What runs a shard is given: `locally` in this process, `with_ray` by Ray Data on a cluster. Both call the same
`collect_shard`, plain bytes in and out, so that a shard may run on a machine that shares no disk with this one. A shard
in flight is lost whole when it fails; rows of finished shards that stand in the table are not asked again.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from evaluation.cases.case import Case, data_hash
from evaluation.traces.client import Endpoint
from evaluation.traces.collect import collect, served_by, standing_rows, told_of
from evaluation.traces.table import Trace, TraceInfo, TraceRow, write_trace

Executor = Callable[[Callable[[bytes], bytes], Sequence[bytes]], Iterable[bytes]]
"""Runs a function over shards, in any order."""


class RayUnavailableError(RuntimeError):
    """Ray is not installed."""


class Shard(msgspec.Struct, frozen=True):
    """Some cases; what crosses to a worker. The endpoints, with their key, cross in the function, not in the shard."""

    cases: list[Case]


def collect_sharded(
    cases: Sequence[Case],
    endpoints: Sequence[Endpoint],
    out: Path,
    *,
    command: str,
    shard_size: int,
    executor: Executor,
    concurrency: int = 4,
    on_done: Callable[[int, int], None] = lambda done, total: None,
) -> Trace:
    """Ask the endpoints for every case and write the table `out`; return it.

    `on_done` gets the number of cases that have a row, and of all. Raises TraceError and ValueError as `collect` does.
    """
    if shard_size < 1:
        raise ValueError("shard_size must be at least 1")
    serving = asyncio.run(served_by(endpoints))
    rows = standing_rows(cases, endpoints[0], out, serving)
    todo = [case for case in cases if case.id not in rows]
    shards = [msgspec.json.encode(Shard(todo[start : start + shard_size])) for start in range(0, len(todo), shard_size)]
    on_done(len(rows), len(cases))
    work = _Work(tuple(endpoints), command, concurrency)
    info = TraceInfo(
        arm=endpoints[0].model,
        command=command,
        data_sha256=data_hash(cases),
        endpoint=told_of(endpoints),
        serving=serving,
    )
    for encoded in executor(work, shards):
        rows |= {row.case_id: row for row in msgspec.json.decode(encoded, type=list[TraceRow])}
        on_done(len(rows), len(cases))
        write_trace(out, Trace(info, [rows[case.id] for case in cases if case.id in rows]))
    trace = Trace(info, [rows[case.id] for case in cases])
    write_trace(out, trace)
    return trace


class _Work:
    """`collect_shard` with its endpoints: an object that crosses to a worker whole."""

    def __init__(self, endpoints: tuple[Endpoint, ...], command: str, concurrency: int) -> None:
        self._given = (endpoints, command, concurrency)

    def __call__(self, shard: bytes) -> bytes:
        return collect_shard(shard, *self._given)


def collect_shard(shard: bytes, endpoints: tuple[Endpoint, ...], command: str, concurrency: int) -> bytes:
    """Rows of a shard's cases, as JSON."""
    cases = msgspec.json.decode(shard, type=Shard).cases
    with tempfile.TemporaryDirectory() as folder:
        trace = asyncio.run(
            collect(cases, endpoints, Path(folder) / "shard.parquet", command=command, concurrency=concurrency)
        )
    return msgspec.json.encode(list(trace.rows))


def locally(function: Callable[[bytes], bytes], shards: Sequence[bytes]) -> Iterator[bytes]:
    """One shard after another, in this process."""
    return (function(shard) for shard in shards)


def with_ray(function: Callable[[bytes], bytes], shards: Sequence[bytes]) -> Iterator[bytes]:
    """Ray Data maps the shards over the cluster that RAY_ADDRESS names, or over this machine's cores.

    Raises RayUnavailableError where Ray is not installed.
    """
    try:
        import ray.data
    except ImportError as error:
        raise RayUnavailableError("Ray is not installed: pip install 'smallcall[ray]'") from error

    def asked(row: dict[str, Any]) -> dict[str, Any]:
        return {"rows": function(row["shard"])}

    if not shards:
        return iter(())
    given = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards))
    return (row["rows"] for row in given.map(asked).iter_rows())
