"""What a draft costs that is given up when its plan stands: `make bench-cancel`, about a minute on a quiet machine.

Real BFCL requests, the shipped adapter, a prompt that is in no cache. Each request is drafted twice, once to its end
and once up to its plan, as the gateway breaks a draft off that the policy escalates `during`. Counted are decode steps
(forward passes after the prefill) and CPU time of one thread; requests whose plan makes no call are left out, because
nothing follows their plan. That the worker stops at once is tested in tests/router/test_processes.py.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass

import torch

from bench.requests import MAX_TOKENS
from bench.run import Clock, base_folder, options, stamp, write
from evaluation.case_sets import case_set, sample
from slm.engine import Engine
from slm.model import load
from slm.protocol import DraftCommand, PlanMade


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
    parser = options("bench.cancel", __doc__, minutes=5)
    parser.add_argument("--per-category", type=int, default=3, help="BFCL cases a category (default: %(default)s)")
    parser.add_argument("--most", type=int, default=24, help="cases in all (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    loaded = load(base_folder(), arguments.adapter)
    engine = Engine(loaded, cache_bytes=0)
    commands = [
        DraftCommand(messages=list(case.messages), tools=list(case.tools), max_tokens=MAX_TOKENS)
        for case in sample("bfcl", case_set("bfcl"), arguments.per_category)[: arguments.most]
    ]
    pairs = []
    clock = Clock(arguments.minutes)
    for asked in commands:
        if clock.past():
            break
        whole, cut = drafted(engine, asked, give_up=False), drafted(engine, asked, give_up=True)
        if whole.calls:
            pairs.append((whole, cut))
    made = {
        **stamp(loaded.info, commands),
        "requests": len(pairs),
        "steps_whole": sum(whole.steps for whole, _ in pairs),
        "steps_cut": sum(cut.steps for _, cut in pairs),
        "cpu_ratio": sum(cut.cpu_s for _, cut in pairs) / sum(whole.cpu_s for whole, _ in pairs),
    }
    made["steps_saved"] = 1 - made["steps_cut"] / made["steps_whole"]
    write(arguments.out, "cancel", made)
    print(json.dumps(made, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
