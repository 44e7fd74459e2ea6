"""The result of `bench.gateway` as a page, and the goals that it is held against."""

from __future__ import annotations

from typing import Any

GOALS = (
    ("LiteLLM", "per_s", 15.0, "requests/s, times LiteLLM's"),
    ("LiteLLM", "added_p50_us", 10.0, "LiteLLM's added median latency over ours"),
    ("TensorZero", "per_s", 1.0, "requests/s, times TensorZero's"),
    ("bare FastAPI", "per_s", 0.5, "requests/s, times bare FastAPI + aiohttp"),
    ("SGLang gateway", "per_s", 1.0, "requests/s, times the SGLang gateway's (the mark beyond the goals)"),
)
_OURS = "smallcall"


def markdown(result: dict[str, Any]) -> str:
    """The page."""
    load = ", ".join(f"{one:.1f}" for one in result["machine"]["load_average"])
    lines = [
        "# Gateways in front of an upstream that answers at once (`make bench-gateway`)",
        "",
        f"{result['at']}; {result['machine']['cpus']} cores shared with other work (load average {load} at the end); "
        f"Python {result['python']}; {result['seconds_a_point']:g} s a point; a request of {result['request_bytes']} "
        "bytes with five tools. Each gateway on one core, load and upstream on the other. Compare within a table only.",
        "",
        "Ours commits a ledger row with fsync before an answer ends, prices its usage, counts and logs it; the "
        "others have neither a store nor keys here. Bare FastAPI and bare ASGI, with aiohttp, forward bytes and do "
        "nothing else.",
        "",
        *_gateways(result),
    ]
    for point in result["points"]:
        lines += _point(point)
    lines += _goals(result)
    rows = result["rows"]
    if rows is not None:
        lines += ["", f"Ledger: {rows['rows']} rows for {rows['answered']} answers that the load saw to their end.", ""]
    return "\n".join(lines)


def _gateways(result: dict[str, Any]) -> list[str]:
    lines = ["| gateway | version | idle MB | |", "|---|---|---|---|"]
    for name, about in result["gateways"].items():
        told = " ".join((about["error"] or about["first_wrong_answer"]).split())
        lines.append(f"| {name} | {about['version'] or 'this repository'} | {about['idle_mb']:.0f} | {told} |")
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


def _goals(result: dict[str, Any]) -> list[str]:
    lines = ["## Goals", "", "| goal | least | " + " | ".join(map(_title, result["points"])) + " |"]
    lines.append("|---|---|" + "---|" * len(result["points"]))
    for rival, key, least, told in GOALS:
        cells = []
        for point in result["points"]:
            ours, theirs = (point["measured"].get(name) for name in (_OURS, rival))
            ratio = _ratio(ours, theirs, key)
            cells.append("" if ratio is None else f"{ratio:.2f}{'' if ratio >= least else ' ✗'}")
        if any(cells):
            lines.append(f"| {told} | {least:g} | " + " | ".join(cells) + " |")
    return lines


def _ratio(ours: dict[str, Any] | None, theirs: dict[str, Any] | None, key: str) -> float | None:
    """How many times better we are."""
    if ours is None or theirs is None or not ours[key] or not theirs[key]:
        return None
    return float(ours[key] / theirs[key]) if key == "per_s" else float(theirs[key] / ours[key])


def _title(point: dict[str, Any]) -> str:
    return f"{point['connections']} {'streamed' if point['stream'] else 'whole'}"
