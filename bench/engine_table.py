"""What the engine's bench found, as figures beside their goals, and as Markdown."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Mapping
from typing import Any

import torch
import transformers

from slm.cache import Shape
from slm.model import DTYPES, Loaded

PEER, REFERENCE = "llama.cpp Q8_0", "transformers generate"
_WEIGHT_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


def table(
    disciplines: Mapping[str, Mapping[str, Any]],
    valid: Mapping[str, Mapping[str, set[str]]],
    loaded: Loaded,
    *,
    threads: int,
    bandwidth: float,
    gguf_bytes: int,
    cache_mb: int,
    peer: str | None,
) -> dict[str, Any]:
    """All figures of a run.

    Args:
        disciplines: `bench.engine.Tally` by discipline and contender.
        valid: requests answered by a valid call, likewise.
        bandwidth: bytes a second that the memory gives.
        gguf_bytes: size of llama.cpp's weights.
        peer: name and version of llama.cpp's package.
    """
    rows: dict[str, dict[str, Any]] = {}
    for discipline in ("warm", "cold"):
        shared = set.intersection(*(ids for name, ids in valid[discipline].items() if name != REFERENCE))
        for name, tally in disciplines[discipline].items():
            rows.setdefault(name, {})[discipline] = _one_client(tally, valid[discipline][name], shared)
    for name, tally in disciplines["eight clients"].items():
        count = len(tally.answers)
        rows[name]["eight_clients"] = {
            "calls_per_s": count / tally.wall_s,
            "calls_per_cpu_s": count / tally.cpu_s,
            "valid": len(valid["eight clients"][name]),
            "peak_mb": tally.peak_bytes / 1e6,
        }
    for name, row in rows.items():
        if name.startswith("smallcall "):
            row.update(_of_worker(name.removeprefix("smallcall "), row, loaded, bandwidth, cache_mb))
    made: dict[str, Any] = {
        "requests": len(disciplines["cold"][_first(rows)].answers),
        "threads": threads,
        "cpu": platform.processor() or platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "memory_bandwidth_gb_s": bandwidth / 1e9,
        "adapter_sha256": loaded.info.adapter_sha256,
        "weights_sha256": loaded.info.weights_sha256,
        "llamacpp_weights_mb": gguf_bytes / 1e6,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "llama.cpp": peer,
        },
        "rows": rows,
    }
    made["goals"] = {name: _goals(rows, name) for name in rows if name.startswith("smallcall ")}
    return made


def _first(rows: Mapping[str, Any]) -> str:
    return next(name for name in rows if name.startswith("smallcall "))


def _one_client(tally: Any, valid: set[str], shared: set[str]) -> dict[str, Any]:
    """Medians over the requests that every contender answered by a valid call."""
    answers = tally.answers
    counted = [answers[id_] for id_ in answers if id_ in shared] or list(answers.values())
    return {
        "median_s": statistics.median(answer.seconds for answer in counted),
        "median_cpu_s": statistics.median(answer.cpu_s for answer in counted),
        "mean_cpu_s": statistics.mean(answer.cpu_s for answer in counted),
        "counted": len(counted),
        "valid": len(valid),
        "tokens_per_call": statistics.mean(answer.tokens for answer in answers.values()),
        "cached_tokens": statistics.mean(answer.cached_tokens for answer in answers.values()),
        "steps_per_token": sum(a.steps for a in answers.values()) / sum(a.tokens for a in answers.values()),
        "step_s": sum(a.decode_s for a in answers.values()) / max(1, sum(a.steps for a in answers.values())),
    }


def _of_worker(dtype: str, row: Mapping[str, Any], loaded: Loaded, bandwidth: float, cache_mb: int) -> dict[str, Any]:
    """Memory against the weights, and a step against the roofline."""
    parameters = sum(parameter.numel() for parameter in loaded.model.parameters())  # Tied ones once.
    weights = parameters * _WEIGHT_BYTES[dtype]
    shape = Shape(loaded.shape.layers, loaded.shape.heads, loaded.shape.head_dim, DTYPES[dtype])  # type: ignore[index]
    step_s = row["warm"]["step_s"]
    return {
        "weights_mb": weights / 1e6,
        "kv_bytes_per_token": shape.bytes_per_token,
        "kv_bound_mb": cache_mb * 1.048576,
        "memory_over_weights": (row["eight_clients"]["peak_mb"] - cache_mb * 1.048576) / (weights / 1e6),
        "roofline_share": weights / bandwidth / step_s if step_s else None,
    }


def _goals(rows: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """What was wanted of the engine beside what was measured."""
    row, peer, reference = rows[name], rows.get(PEER), rows[REFERENCE]["cold"]
    made = []

    def goal(what: str, bound: float, value: float, at_most: bool) -> None:
        met = value <= bound if at_most else value >= bound
        made.append({"what": what, "goal": f"{'≤' if at_most else '≥'} {bound}", "measured": value, "met": met})

    if peer is not None:
        for discipline, bound in (("warm", 0.5), ("cold", 0.8)):
            for unit, label in (("median_s", "time"), ("median_cpu_s", "CPU time")):
                value = row[discipline][unit] / peer[discipline][unit]
                goal(f"median {label} of a valid call, {discipline}, ÷ llama.cpp's", bound, value, True)
        for unit, label in (("calls_per_s", "calls/s"), ("calls_per_cpu_s", "calls per CPU second")):
            value = row["eight_clients"][unit] / peer["eight_clients"][unit]
            goal(f"{label}, 8 clients, ÷ llama.cpp's", 1.5, value, False)
    one_by_one = reference["mean_cpu_s"] * row["eight_clients"]["calls_per_cpu_s"]
    goal("calls per CPU second, 8 clients, ÷ transformers'", 8, one_by_one, False)
    goal("decode steps ÷ tokens", 0.35, row["warm"]["steps_per_token"], True)
    goal("(peak memory − bound on keys and values) ÷ weights", 2.5, row["memory_over_weights"], True)
    return made


def markdown(made: Mapping[str, Any]) -> str:
    """The tables for reading."""
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items() if version)
    lines = [
        f"# The engine on {made['requests']} real tool calls (`make bench-engine`)",
        "",
        f"BFCL and multi-turn SGD test rows, {made['threads']} thread(s) for every contender, the same merged weights; "
        f"{versions}; {made['capability']}, {made['memory_bandwidth_gb_s']:.1f} GB/s read by one thread. "
        "Times are medians over the requests that all contenders answered by a valid call.",
        "",
        "| contender | warm s | warm CPU s | cold s | cold CPU s | 8 clients calls/s | per CPU s | valid warm | "
        "tokens a call | steps ÷ tokens | peak MB |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in made["rows"].items():
        warm, cold, many = row.get("warm"), row["cold"], row.get("eight_clients")
        lines.append(
            f"| {name} | {_cell(warm, 'median_s')} | {_cell(warm, 'median_cpu_s')} | {_cell(cold, 'median_s')} | "
            f"{_cell(cold, 'median_cpu_s')} | {_cell(many, 'calls_per_s', 2)} | {_cell(many, 'calls_per_cpu_s', 2)} | "
            f"{_cell(warm, 'valid', 0)} | {_cell(cold, 'tokens_per_call', 1)} | {_cell(cold, 'steps_per_token', 2)} | "
            f"{_cell(many, 'peak_mb', 0)} |"
        )
    for name, goals in made["goals"].items():
        row = made["rows"][name]
        lines += ["", f"## {name} against its goals", "", "| what | goal | measured | met |", "|---|---|---|---|"]
        lines += [f"| {g['what']} | {g['goal']} | {g['measured']:.2f} | {'yes' if g['met'] else 'no'} |" for g in goals]
        lines += [
            "",
            f"Weights {row['weights_mb']:.0f} MB; a step of one client takes {row['warm']['step_s'] * 1e3:.1f} ms, its "
            f"weights could be read in {row['roofline_share']:.0%} of that.",
        ]
    return "\n".join([*lines, ""])


def _cell(values: Mapping[str, Any] | None, key: str, digits: int = 3) -> str:
    return "" if values is None else f"{values[key]:.{digits}f}"
