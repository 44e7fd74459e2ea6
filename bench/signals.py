"""What the signals of a draft cost: `make bench-signals`. Their share of decode time, one client and eight.

Counted as signals is all that greedy decoding under a grammar would not do: the distributions with margins, entropies
and candidates, the inner layers' agreement, the feasible mass and the hidden states. Decode time is that of the steps
in which every draft reads no prompt any more. Not counted: rows of logits that only a forced token's signals need.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import torch

from bench.requests import requests
from bench.run import Clock, base_folder, options, stamp, write
from slm.draft import Drafting
from slm.engine import Engine
from slm.model import DTypeName, load
from slm.protocol import DraftCommand
from slm.signals import Distribution, Marks

LIMIT = 0.1
"""Of decode time."""
DTYPES: tuple[DTypeName, ...] = ("float32", "int8")
CLIENTS = (1, 8)


@dataclass
class Spent:
    """CPU seconds of this thread."""

    signals_s: float = 0.0
    decode_s: float = 0.0
    steps: int = 0
    _kept: list[tuple[Any, str, Any]] = field(default_factory=list)

    def __enter__(self) -> Spent:
        for owner, name in ((Distribution, "__init__"), (Distribution, "signals"), (Marks, "add")):
            self._kept.append((owner, name, getattr(owner, name)))
            setattr(owner, name, self._timed(getattr(owner, name)))
        return self

    def __exit__(self, *_: object) -> None:
        for owner, name, original in self._kept:
            setattr(owner, name, original)

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def timed(*arguments: Any, **named: Any) -> Any:
            began = time.thread_time()
            try:
                return call(*arguments, **named)
            finally:
                self.signals_s += time.thread_time() - began

        return timed

    def step(self, engine: Engine, drafts: Sequence[Drafting]) -> None:
        """One step, counted if no prompt is read in it."""
        decoding = all(draft.decoding for draft in drafts)
        before, began = self.signals_s, time.thread_time()
        engine.step(drafts)
        if decoding:
            self.decode_s += time.thread_time() - began
            self.steps += 1
        else:
            self.signals_s = before


def measured(engine: Engine, commands: Sequence[DraftCommand], clients: int) -> Spent:
    """Draft so many at once until all are done."""
    with Spent() as spent:
        for start in range(0, len(commands), clients):
            active = [engine.begin(command) for command in commands[start : start + clients]]
            while active:
                spent.step(engine, active)
                for draft in [one for one in active if one.finished]:
                    engine.release(draft)
                active = [one for one in active if not one.finished]
    return spent


def main() -> int:
    """Measure and write the result. Returns the exit code: 1 where the limit is passed."""
    parser = options("bench.signals", __doc__, minutes=10)
    parser.add_argument("--requests", type=int, default=24, help="default: %(default)s")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    asked = [request.command for request in requests(arguments.requests)]
    clock, rows, info = Clock(arguments.minutes), [], None
    for dtype in DTYPES:
        loaded = load(base_folder(), arguments.adapter, dtype)
        info = info or loaded.info
        engine = Engine(loaded)
        for clients in CLIENTS:
            if clock.past():
                clock.tell(f"{dtype}, {clients} at once: left out, the time is over")
                continue
            spent = measured(engine, asked, clients)
            share = spent.signals_s / spent.decode_s
            rows.append({"dtype": dtype, "at_once": clients, "share": share, "steps": spent.steps})
            clock.tell(f"{dtype}, {clients} at once: {100 * share:.1f} % of {spent.steps} steps' CPU time")
    assert info is not None
    write(arguments.out, "signals", {**stamp(info, asked), "threads": arguments.threads, "limit": LIMIT, "rows": rows})
    return int(any(row["share"] > LIMIT for row in rows))


if __name__ == "__main__":
    sys.exit(main())
