"""OpenVINO's forward pass beside ours: `make bench-openvino`. One prompt read, in float32, by the same weights.

Prompts are most of a short draft's time, so this is what OpenVINO as the engine's forward pass would be worth at most.
It is put into an environment of its own, which sees this one's torch. Passes are timed by turns, in CPU seconds; both
read the same tokens, and their logits are held against each other.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.engine import ENVIRONMENTS
from bench.environments import python_with
from bench.requests import requests
from bench.run import Clock, base_folder, options, stamp, write
from slm.cache import Chunk, KeyValues
from slm.llama import LlamaForward
from slm.model import Loaded, load
from slm.pattern import render_prompt

PACKAGE = "openvino==2026.4.1"
LENGTHS = (128, 512)
TURNS = 7
APART = 1e-3
"""By so much logits may differ: both are float32."""

Pass = Callable[[list[int]], np.ndarray]


def ours(loaded: Loaded) -> Pass:
    """The engine's pass over a whole prompt; the last token's logits."""
    forward = LlamaForward(loaded.model)

    def run(ids: list[int]) -> np.ndarray:
        with torch.inference_mode():
            return forward([Chunk(KeyValues(loaded.shape, len(ids)), ids, 1)]).logits[0].numpy()

    return run


class _LastLogits(torch.nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> Any:
        """Logits of the last token, shape (1, vocabulary); a mask of its own, since OpenVINO cannot read how
        transformers makes one."""
        count = input_ids.shape[1]
        mask = torch.full((count, count), -torch.inf).triu(1)[None, None]
        states = self.model.model(
            input_ids=input_ids, attention_mask=mask, position_ids=torch.arange(count)[None], use_cache=False
        ).last_hidden_state
        return self.model.lm_head(states[:, -1])


def theirs(loaded: Loaded, threads: int) -> Pass:
    """OpenVINO's pass over transformers' model."""
    import openvino

    example = {"input_ids": torch.zeros(1, LENGTHS[-1], dtype=torch.long)}
    model = openvino.convert_model(_LastLogits(loaded.model), example_input=example)
    compiled = openvino.Core().compile_model(
        model,
        "CPU",
        {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"},
    )
    request, output = compiled.create_infer_request(), compiled.output(0)

    def run(ids: list[int]) -> np.ndarray:
        logits: np.ndarray = request.infer({0: np.array([ids])})[output][0]
        return logits

    return run


def cpu_s(run: Pass, ids: list[int]) -> float:
    """CPU seconds of one pass."""
    began = time.process_time()
    run(ids)
    return time.process_time() - began


def compared(contenders: dict[str, Pass], ids: list[int]) -> dict[str, Any]:
    """Median CPU seconds of a pass of each, by turns, and how far logits are apart. Raises ValueError: too far."""
    logits = [run(ids) for run in contenders.values()]
    apart = float(np.abs(logits[0] - logits[1]).max())
    if apart > APART:
        raise ValueError(f"the two compute different logits: {apart:g} apart")
    took: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(TURNS):
        for name, run in contenders.items():
            took[name].append(cpu_s(run, ids))
    medians = {name: statistics.median(times) for name, times in took.items()}
    return {
        "prompt_tokens": len(ids),
        "cpu_s": medians,
        "ours_over_openvino": medians["smallcall float32"] / medians["openvino float32"],
        "logits_apart": apart,
    }


def main() -> int:
    """Compare and write the result. Returns the exit code."""
    parser = options("bench.openvino_pass", __doc__, minutes=5)
    parser.add_argument("--environments", type=Path, default=ENVIRONMENTS, help="default: %(default)s")
    arguments = parser.parse_args()
    environment = arguments.environments.expanduser() / "openvino"
    if Path(sys.prefix) != environment:
        python = python_with(environment, [PACKAGE], lent=True)
        path = f"PYTHONPATH={Path(__file__).parents[1]}"
        line = ["/usr/bin/env", path, str(python), "-m", "bench.openvino_pass", *sys.argv[1:]]
        return subprocess.run(line, check=False).returncode
    torch.set_num_threads(arguments.threads)
    asked = [request.command for request in requests(20)]
    loaded = load(base_folder(), arguments.adapter)
    prompts = [loaded.tokens.prompt(render_prompt(one.messages, one.tools, loaded.tokens.frame)) for one in asked]
    ids = [token for prompt in prompts for token in prompt]
    reference = load(base_folder(), arguments.adapter)
    contenders = {"smallcall float32": ours(loaded), "openvino float32": theirs(reference, arguments.threads)}
    clock = Clock(arguments.minutes)
    rows = [compared(contenders, ids[:length]) for length in LENGTHS if not clock.past()]
    made = {**stamp(loaded.info, asked), "package": PACKAGE, "threads": arguments.threads, "rows": rows}
    write(arguments.out, "openvino", made)
    for row in rows:
        ratio = row["ours_over_openvino"]
        print(f"{row['prompt_tokens']} tokens: our pass takes {ratio:.2f} of OpenVINO's CPU time")
    return 0


if __name__ == "__main__":
    sys.exit(main())
