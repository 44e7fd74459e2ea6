"""The results of the engine's bench: figures beside their goals, and as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from bench.contenders import PEER, REFERENCE
from slm.engine.kv_cache import Shape
from slm.engine.model import DTYPES, LoadedModel

_WEIGHT_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}
_OURS = "smallcall "
_SAME_WORK = 0.9
"""Valid share at eight clients, over that of one client, below which a peer does other work there: no ratio is
reported."""


def table(
    disciplines: Mapping[str, Mapping[str, Any]],
    valid: Mapping[str, Mapping[str, set[str]]],
    loaded: LoadedModel,
    run: Mapping[str, Any],
    *,
    kv_bound_bytes: Mapping[str, int],
) -> dict[str, Any]:
    """All figures that a run has so far.

    Args:
        disciplines: `bench.engine.Tally` by discipline and contender; one that is not measured yet is not there.
        valid: requests answered by a valid call, likewise.
        run: facts about the run, reported unchanged.
        kv_bound_bytes: by precision, of our worker's keys and values: of prefixes kept and of drafts under way.
    """
    rows: dict[str, dict[str, Any]] = {}
    failures: dict[str, list[str]] = {}
    for discipline, tallies in disciplines.items():
        answering = [name for name, tally in tallies.items() if tally.answers and name != REFERENCE]
        shared = set.intersection(*(valid[discipline][name] for name in answering)) if answering else set()
        for name, tally in tallies.items():
            if tally.failures:
                failures[f"{name}, {discipline}"] = [f"{tally.failures} failed", *tally.errors]
            if not tally.answers:
                continue
            many = discipline == "eight clients"
            rows.setdefault(name, {})[discipline] = (
                _many_clients(tally, valid[discipline][name])
                if many
                else _one_client(tally, valid[discipline][name], shared)
            )
    for name, row in rows.items():
        if name.startswith(_OURS):
            dtype = name.removeprefix(_OURS)
            row.update(_of_worker(dtype, row, loaded, run["memory_bandwidth_gb_s"] * 1e9, kv_bound_bytes[dtype] / 1e6))
    goals = {name: _goals(rows, name) for name in rows if name.startswith(_OURS)}
    return {**run, "rows": rows, "goals": goals, "failures": failures}


def _one_client(tally: Any, valid: set[str], shared: set[str]) -> dict[str, Any]:
    """Medians over the requests that every contender answered by a valid call, or over all where there is none."""
    answers = tally.answers
    counted = [answers[id_] for id_ in answers if id_ in shared] or list(answers.values())
    tokens, steps = (sum(getattr(answer, name) for answer in answers.values()) for name in ("tokens", "steps"))
    return {
        "answered": len(answers),
        "valid": len(valid),
        "counted": len(counted),
        "median_s": statistics.median(answer.seconds for answer in counted),
        "median_cpu_s": statistics.median(answer.cpu_s for answer in counted),
        "calls_per_s": len(answers) / tally.wall_s,
        "calls_per_cpu_s": len(answers) / tally.cpu_s,
        "tokens_per_call": tokens / len(answers),
        "steps_per_call": steps / len(answers),
        "steps_per_token": steps / max(1, tokens),
        "cached_tokens": statistics.mean(answer.cached_tokens for answer in answers.values()),
        "step_s": sum(answer.decode_s for answer in answers.values()) / max(1, steps),
    }


def _many_clients(tally: Any, valid: set[str]) -> dict[str, Any]:
    return {
        "answered": len(tally.answers),
        "valid": len(valid),
        "calls_per_s": len(tally.answers) / tally.wall_s,
        "calls_per_cpu_s": len(tally.answers) / tally.cpu_s,
        "peak_mb": tally.peak_bytes / 1e6,
        "resident_mb": tally.resident_bytes / 1e6,
    }


def kv_bytes_per_token(dtype: str, loaded: LoadedModel) -> int:
    """In our worker of that precision."""
    return Shape(loaded.shape.layers, loaded.shape.heads, loaded.shape.head_dim, DTYPES[dtype]).bytes_per_token  # type: ignore[index]


def _of_worker(
    dtype: str, row: Mapping[str, Any], loaded: LoadedModel, bandwidth: float, kv_bound_mb: float
) -> dict[str, Any]:
    """Memory against the weights, and a step against the roofline, as far as they are measured."""
    parameters = sum(parameter.numel() for parameter in loaded.model.parameters())  # Tied ones once.
    weights = parameters * _WEIGHT_BYTES[dtype]
    kv_bytes = kv_bytes_per_token(dtype, loaded)
    made = {"weights_mb": weights / 1e6, "kv_bytes_per_token": kv_bytes, "kv_bound_mb": kv_bound_mb}
    if many := row.get("eight clients"):
        made["memory_over_weights"] = (many["resident_mb"] - kv_bound_mb) / (weights / 1e6)
        made["peak_over_weights"] = (many["peak_mb"] - kv_bound_mb) / (weights / 1e6)
    if (warm := row.get("warm")) and warm["step_s"]:
        made["roofline_share"] = weights / bandwidth / warm["step_s"]
    return made


def _goals(rows: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """Goals of the engine beside the measured figures; a goal whose other side is missing is left out."""
    row, peer, reference = rows[name], rows.get(PEER, {}), rows.get(REFERENCE, {}).get("cold")
    many = row.get("eight clients")
    made: list[dict[str, Any]] = []

    def goal(what: str, bound: float, value: float, at_most: bool) -> None:
        met = value <= bound if at_most else value >= bound
        made.append({"what": what, "goal": f"{'≤' if at_most else '≥'} {bound}", "measured": value, "met": met})

    for discipline, bound in (("warm", 0.5), ("cold", 0.8)):
        if discipline in row and discipline in peer:
            for unit, label in (("median_s", "time"), ("median_cpu_s", "CPU time")):
                value = row[discipline][unit] / peer[discipline][unit]
                goal(f"median {label} of a valid call, {discipline}, ÷ llama.cpp's", bound, value, True)
    for other, bound, whose in (
        (peer.get("eight clients") if _same_work(peer) else None, 1.5, "llama.cpp's"),
        (reference, 8, "transformers' one by one"),
    ):
        if many and other:
            for unit, label in (("calls_per_s", "calls/s"), ("calls_per_cpu_s", "calls per CPU second")):
                goal(f"{label}, 8 clients, ÷ {whose}", bound, many[unit] / other[unit], False)
    if "warm" in row:
        goal("decode steps ÷ tokens", 0.35, row["warm"]["steps_per_token"], True)
    if many:
        goal("(memory at the end − bound on keys and values) ÷ weights", 2.5, row["memory_over_weights"], True)
        goal("(peak memory, loading included, − the same bound) ÷ weights", 2.5, row["peak_over_weights"], True)
    return made


def _same_work(peer: Mapping[str, Any]) -> bool:
    """True if a contender's calls are as often valid at eight clients as at one."""
    many, one = peer.get("eight clients"), peer.get("warm") or peer.get("cold")
    if not many or not one:
        return True
    return bool(many["valid"] / many["answered"] >= _SAME_WORK * one["valid"] / one["answered"])


def markdown(made: Mapping[str, Any]) -> str:
    """The tables for reading."""
    return "\n".join([*_head(made), *_rows(made), *_unlike(made), *_against_goals(made), *_failures(made), ""])


def _head(made: Mapping[str, Any]) -> Sequence[str]:
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    peer, machine = made["llamacpp"], made["machine"]
    return [
        f"# The engine on {made['requests']} real tool calls (`make bench-engine`)",
        "",
        f"BFCL and multi-turn SGD test rows, {made['threads']} thread(s) for every contender, the same weights. "
        f"{machine['cpu']}, {machine['cores']} cores, {machine['capability']}, {made['memory_bandwidth_gb_s']:.1f} "
        f"GB/s read; load at the start {machine['load_1_minute']:.1f}; {versions}, "
        f"llama.cpp by {peer['package'] or 'nothing: ' + str(peer['missing'])}.",
        "",
        f"`{made['command']}` at commit {made['commit']}, requests {made['data_sha256'][:12]}, weights "
        f"{made['weights_sha256'][:12]}, adapter {str(made['adapter_sha256'])[:12]}; {made['minutes']:.1f} minutes. "
        "Times are medians over the requests that all contenders answered by a valid call.",
    ]


def _rows(made: Mapping[str, Any]) -> Sequence[str]:
    lines = [
        "",
        "| contender | warm s | warm CPU s | cold s | cold CPU s | 8 clients calls/s | per CPU s | "
        "valid/answered: warm | cold | 8 clients | tokens a call | steps a call | steps ÷ tokens | MB | peak MB |",
        "|" + "---|" * 15,
    ]
    for name, row in made["rows"].items():
        warm, cold, many = row.get("warm"), row.get("cold"), row.get("eight clients")
        any_one = warm or cold
        cells = [
            _cell(warm, "median_s"), _cell(warm, "median_cpu_s"), _cell(cold, "median_s"), _cell(cold, "median_cpu_s"),
            _cell(many, "calls_per_s", 2), _cell(many, "calls_per_cpu_s", 2),
            *(f"{one['valid']}/{one['answered']}" if one and name != REFERENCE else "" for one in (warm, cold, many)),
            _cell(any_one, "tokens_per_call", 1), _cell(any_one, "steps_per_call", 1),
            _cell(any_one, "steps_per_token", 2),
            _cell(many, "resident_mb", 0), _cell(many, "peak_mb", 0),
        ]  # fmt: skip
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def _unlike(made: Mapping[str, Any]) -> Sequence[str]:
    if _same_work(made["rows"].get(PEER, {})):
        return []
    return [
        "",
        "llama.cpp's calls at eight clients are less often valid than those that it writes alone: no ratio there.",
    ]


def _against_goals(made: Mapping[str, Any]) -> Sequence[str]:
    lines = []
    for name, goals in made["goals"].items():
        row = made["rows"][name]
        lines += ["", f"## {name} against its goals", "", "| what | goal | measured | met |", "|---|---|---|---|"]
        lines += [f"| {g['what']} | {g['goal']} | {g['measured']:.2f} | {'yes' if g['met'] else 'no'} |" for g in goals]
        lines += ["", f"Weights {row['weights_mb']:.0f} MB, keys and values {row['kv_bytes_per_token']} bytes a token."]
        if "roofline_share" in row:
            lines[-1] += (
                f" A step of one client takes {row['warm']['step_s'] * 1e3:.1f} ms; its weights could be read in "
                f"{row['roofline_share']:.0%} of that."
            )
    return lines


def _failures(made: Mapping[str, Any]) -> Sequence[str]:
    if not made["failures"]:
        return []
    return ["", "## What failed", "", *(f"- {who}: {'; '.join(what)}" for who, what in made["failures"].items())]


def _cell(values: Mapping[str, Any] | None, key: str, digits: int = 3) -> str:
    return "" if values is None else f"{values[key]:.{digits}f}"
