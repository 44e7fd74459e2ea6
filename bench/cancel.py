"""What a draft costs that is given up when its plan stands: `make bench-cancel`, about a minute on a quiet machine.

Real BFCL requests, the shipped adapter, a prompt that is in no cache. Each request is drafted twice, once to its end
and once up to its plan, as the gateway breaks a draft off that the policy escalates `during`. Counted are decode steps
(forward passes after the prefill) and CPU time of one thread; requests whose plan makes no call are left out, because
nothing follows their plan. That the worker stops at once is tested in tests/router/test_processes.py.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.engine import ADAPTER, RESULTS
from bench.requests import MAX_TOKENS
from evaluation.case_sets import case_set, sample
from slm.engine import Engine
from slm.model import load
from slm.protocol import DraftCommand, PlanMade
from slm.weights import DEFAULT_MODEL, default_cache, resolve_model


@dataclass
class Spent:
    """Of one draft."""

    steps: int
    cpu_s: float
    calls: bool


def drafted(engine: Engine, asked: DraftCommand, *, give_up: bool) -> Spent:
    """Draft to the end, or until the plan stands."""
    began = time.thread_time()
    draft = engine.begin(asked)
    steps, calls, planned = 0, False, False
    while not (draft.finished or (give_up and planned)):
        steps += draft.decoding
        engine.step([draft])
        for event in draft.events:
            if isinstance(event, PlanMade):
                planned, calls = True, event.kind == "calls"
        draft.events.clear()
    spent = Spent(steps, time.thread_time() - began, calls)
    engine.release(draft)
    return spent


def main() -> int:
    """Measure and write the results. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.cancel", description=__doc__.partition("\n")[0])
    parser.add_argument("--per-category", type=int, default=3, help="BFCL cases a category (default: %(default)s)")
    parser.add_argument("--most", type=int, default=24, help="cases in all (default: %(default)s)")
    parser.add_argument("--adapter", type=Path, default=ADAPTER, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    loaded = load(resolve_model(DEFAULT_MODEL, default_cache()).path, arguments.adapter)
    engine = Engine(loaded, cache_bytes=0)
    pairs = []
    for case in sample("bfcl", case_set("bfcl"), arguments.per_category)[: arguments.most]:
        asked = DraftCommand(messages=list(case.messages), tools=list(case.tools), max_tokens=MAX_TOKENS)
        whole, cut = drafted(engine, asked, give_up=False), drafted(engine, asked, give_up=True)
        if whole.calls:
            pairs.append((whole, cut))
    made = {
        "requests": len(pairs),
        "adapter_sha256": loaded.info.adapter_sha256,
        "steps_whole": sum(whole.steps for whole, _ in pairs),
        "steps_cut": sum(cut.steps for _, cut in pairs),
        "cpu_ratio": sum(cut.cpu_s for _, cut in pairs) / sum(whole.cpu_s for whole, _ in pairs),
    }
    made["steps_saved"] = 1 - made["steps_cut"] / made["steps_whole"]
    (arguments.out / "cancel.json").write_text(json.dumps(made, indent=2) + "\n")
    print(json.dumps(made, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
