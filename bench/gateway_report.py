"""The result of `bench.gateway` as a page, and the goals that it is held against."""

from __future__ import annotations

from typing import Any

OURS = "smallcall"
RATIOS = (
    ("per_s", "requests/s"),
    ("added_p50_us", "added median latency"),
    ("added_p99_us", "added p99 latency"),
    ("cpu_us", "CPU a request"),
    ("rss_mb", "memory"),
)
"""Figures reported as ratios of ours to theirs, with their headings."""
GOALS = (
    ("LiteLLM", "per_s", 15.0),
    ("LiteLLM", "added_p50_us", 0.1),
    ("TensorZero", "per_s", 1.0),
    ("bare FastAPI", "per_s", 0.5),
    ("SGLang gateway", "per_s", 1.0),
)
"""At least so much of ours over theirs; of latency at most. The last one is the mark beyond the goals."""


def markdown(result: dict[str, Any]) -> str:
    """The page."""
    load = ", ".join(f"{one:.1f}" for one in result["machine"]["load_average"])
    lines = [
        "# Gateways in front of an upstream that answers at once (`make bench-gateway`)",
        "",
        f"`{result['command']}` at commit {result['commit']}, {result['at']}; "
        f"{result['machine']['cpus']} cores shared with other work (load average {load} at the end); "
        f"Python {result['python']}; {result['seconds_a_point']:g} s a point; a request of {result['request_bytes']} "
        "bytes with five tools. Each gateway on one core, load and upstream on the other. Compare within a table only.",
        "",
        "Ours is asked with a virtual key whose budget and rates are counted, and commits a ledger row before an "
        "answer ends, prices its usage, counts and logs it; `smallcall-normal` does so with `ledger.synchronous: "
        "normal`: a row outlives the process, not a power cut. The others have neither a store nor keys here. Bare "
        "FastAPI and bare ASGI, with aiohttp, forward bytes and do nothing else.",
        "",
        *_gateways(result),
    ]
    for point in result["points"]:
        lines += _point(point)
    for name in (OURS, f"{OURS}-normal"):
        if any(name in point["measured"] for point in result["points"]):
            lines += [*_ratios(result, name), *_goals(result, name)]
    rows = result["rows"]
    if rows is not None:
        lines += ["", f"Ledger: {rows['rows']} rows for {rows['answered']} answers that the load saw to their end.", ""]
    return "\n".join(lines)


def _gateways(result: dict[str, Any]) -> list[str]:
    lines = ["| gateway | version | idle MB | |", "|---|---|---|---|"]
    for name, about in result["gateways"].items():
        problem = " ".join((about["error"] or about["first_wrong_answer"]).split())
        lines.append(f"| {name} | {about['version'] or 'this repository'} | {about['idle_mb']:.0f} | {problem} |")
    return [*lines, ""]


def _point(point: dict[str, Any]) -> list[str]:
    many = "connection" if point["connections"] == 1 else "connections"
    lines = [
        f"## {point['connections']} {many}, {'streamed' if point['stream'] else 'whole'}",
        "",
        "| | requests/s | median µs | added median µs | added p99 µs | CPU µs a request | MB | errors | load core |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, got in point["measured"].items():
        added = [
            f"{got[key]:.0f}" if key in got else "" for key in ("added_p50_us", "added_p99_us", "cpu_us", "rss_mb")
        ]
        lines.append(
            f"| {name} | {got['per_s']:.0f} | {got['p50_us']:.0f} | {' | '.join(added)} | {got['errors']} "
            f"| {got['load_core']:.0%} |"
        )
    return [*lines, ""]


def _ratios(result: dict[str, Any], ours: str) -> list[str]:
    peers = [name for name in result["gateways"] if not name.startswith(OURS)]
    titles = list(map(_title, result["points"]))
    lines: list[str] = []
    for key, heading in RATIOS:
        lines += ["", f"## {heading}: {ours} / peer", ""]
        lines += ["| peer | " + " | ".join(titles) + " |", "|---|" + "---|" * len(titles)]
        for peer in peers:
            ratios = [_ratio(point, ours, peer, key) for point in result["points"]]
            lines.append(f"| {peer} | " + " | ".join("" if one is None else f"{one:.2f}" for one in ratios) + " |")
    return lines


def _goals(result: dict[str, Any], ours: str) -> list[str]:
    lines = ["", f"## Goals: {ours} / peer", ""]
    lines += ["| | goal | " + " | ".join(map(_title, result["points"])) + " |"]
    lines.append("|---|---|" + "---|" * len(result["points"]))
    for peer, key, goal in GOALS:
        more = key == "per_s"
        cells = []
        for point in result["points"]:
            ratio = _ratio(point, ours, peer, key)
            met = ratio is not None and (ratio >= goal if more else ratio <= goal)
            cells.append("" if ratio is None else f"{ratio:.2f}{'' if met else ' ✗'}")
        if any(cells):
            lines.append(f"| {dict(RATIOS)[key]}, {peer} | {'≥' if more else '≤'} {goal:g} | {' | '.join(cells)} |")
    return lines


def _ratio(point: dict[str, Any], ours: str, peer: str, key: str) -> float | None:
    """Ours over theirs; None where one is missing, or theirs lies within the noise of asking directly."""
    mine, theirs = (point["measured"].get(name) for name in (ours, peer))
    if mine is None or theirs is None or theirs[key] <= 0:
        return None
    return float(mine[key] / theirs[key])


def _title(point: dict[str, Any]) -> str:
    return f"{point['connections']} {'streamed' if point['stream'] else 'whole'}"
