"""Are greedy drafts those of transformers' own `generate`? `make engine-parity`, with every accelerator on and off.

Accelerators: the prefix cache, look-ahead, several drafts in one pass, and the lean forward pass that all of them use.
Two modes. Free: no grammar; the draft is held against `generate` up to where the draft ends. Grammar: `generate` gets a
logits processor that allows at each step what the draft's own grammar allows there, and the forced token where there is
one; so what is held against each other is the decoding, not the grammar. In float32, where only the order of additions
differs: two tokens nearer to each other than that may change places, and such a draft counts as different here.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
import transformers
from transformers import LogitsProcessor, LogitsProcessorList

from bench.requests import requests
from slm.engine import Engine
from slm.grammar import Constraint, Offer
from slm.model import Loaded, load
from slm.pattern import render_prompt
from slm.protocol import DraftCommand, Event, Token
from slm.weights import DEFAULT_MODEL, default_cache, resolve_model

ADAPTER = Path("slm/adapters/smollm2-135m-toolcall")
RESULTS = Path("evaluation/results")
CACHE_BYTES = 64 << 20
SLOTS = 8


@dataclass(frozen=True, slots=True)
class Switches:
    """Which accelerators are on."""

    cache: bool = False
    lookahead: bool = False
    together: bool = False

    def engine(self, loaded: Loaded) -> Engine:
        """An engine with these."""
        return Engine(
            loaded,
            cache_bytes=CACHE_BYTES if self.cache else 0,
            slots=SLOTS if self.together else 1,
            lookahead=self.lookahead,
        )


SETTINGS = {
    "all off": Switches(),
    "prefix cache": Switches(cache=True),
    "look-ahead": Switches(lookahead=True),
    "eight at once": Switches(together=True),
    "all on": Switches(True, True, True),
}


class _Allowed(LogitsProcessor):  # type: ignore[misc]
    """The draft's grammar in `generate`: the forced token where there is one, else what is allowed."""

    def __init__(self, constraint: Constraint, prompt_tokens: int, end_id: int) -> None:
        self._constraint, self._read, self._end_id = constraint, prompt_tokens, end_id

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        for token in ids[0, self._read :].tolist():
            self._constraint.write(token)
            self._read += 1
        mask = torch.zeros(scores.shape[-1], dtype=torch.bool)
        if self._constraint.ended:
            mask[self._end_id] = True
        elif forced := self._constraint.forced():
            mask[forced[0]] = True
        else:
            mask |= torch.from_numpy(self._constraint.allowed())
        return scores.masked_fill(~mask, -torch.inf)


def generated(loaded: Loaded, command: DraftCommand) -> list[int]:
    """The tokens of transformers' greedy `generate`, up to an end token or `max_tokens`."""
    prompt = loaded.tokens.prompt(render_prompt(command.messages, command.tools, loaded.tokens.frame))
    ends = sorted(loaded.tokens.end_ids)
    processors = LogitsProcessorList()
    if command.grammar:
        offer = Offer.of(command.tools, command.tool_choice, command.forced_tool, command.parallel_tool_calls)
        processors.append(_Allowed(Constraint(offer, loaded.tokens.grammar_tokenizer), len(prompt), ends[0]))
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        made = loaded.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=command.max_tokens,
            eos_token_id=ends, pad_token_id=ends[0], logits_processor=processors, repetition_penalty=1.0,
        )  # fmt: skip
    tokens: list[int] = made[0, len(prompt) :].tolist()
    return tokens[:-1] if tokens and tokens[-1] in ends else tokens


def drafted(engine: Engine, commands: Sequence[DraftCommand]) -> list[list[int]]:
    """The tokens of our drafts."""
    made: dict[int, list[Event]] = dict(engine.draft_many(commands))
    return [[event.id for event in made[place] if isinstance(event, Token)] for place in range(len(commands))]


def differences(expected: Sequence[list[int]], got: Sequence[list[int]], *, free: bool) -> list[int]:
    """Places where drafts are not what `generate` wrote. A free one ends at a blank line, where `generate` goes on."""
    different = []
    for place, (theirs, ours) in enumerate(zip(expected, got, strict=True)):
        compared = theirs[: len(ours)] if free else theirs
        if ours != compared or (free and not ours and theirs):
            different.append(place)
    return different


def compared(
    reference: Loaded,
    ours: Loaded,
    commands: Sequence[DraftCommand],
    told: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """How many drafts of these commands are token for token those of `generate`, by mode and setting.

    Args:
        reference: not used by an engine: its model stays transformers' own.
        ours: the same weights.
    """
    made: dict[str, Any] = {}
    for mode, grammar in (("free", False), ("grammar", True)):
        asked = [msgspec.structs.replace(command, grammar=grammar) for command in commands]
        expected = []
        for place, command in enumerate(asked):
            expected.append(generated(reference, command))
            told(f"{mode}: generate {place + 1} of {len(asked)}")
        rows = {}
        for name, switches in SETTINGS.items():
            different = differences(expected, drafted(switches.engine(ours), asked), free=not grammar)
            rows[name] = {"identical": len(asked) - len(different), "of": len(asked), "different": different}
            told(f"{mode}: {name}: {rows[name]['identical']} of {len(asked)} identical")
        made[mode] = {"tokens": sum(map(len, expected)), "settings": rows}
    return made


def main() -> int:
    """Compare and write the result. Returns the exit code: 1 where a draft differs."""
    parser = argparse.ArgumentParser(prog="python -m bench.parity", description=__doc__.partition("\n")[0])
    parser.add_argument("--prompts", type=int, default=200, help="default: %(default)s")
    parser.add_argument("--max-tokens", type=int, default=48, help="of a draft (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--adapter", type=Path, default=ADAPTER, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    folder = resolve_model(DEFAULT_MODEL, default_cache()).path
    reference, ours = load(folder, arguments.adapter), load(folder, arguments.adapter)
    commands = [
        msgspec.structs.replace(request.command, max_tokens=arguments.max_tokens)
        for request in requests(arguments.prompts)
    ]
    made = {
        "prompts": len(commands),
        "max_tokens": arguments.max_tokens,
        "dtype": "float32",
        "weights_sha256": reference.info.weights_sha256,
        "adapter_sha256": reference.info.adapter_sha256,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        **compared(reference, ours, commands, lambda line: print(line, flush=True)),
    }
    (arguments.out / "engine_parity.json").write_text(json.dumps(made, indent=2) + "\n")
    wrong = any(row["different"] for mode in ("free", "grammar") for row in made[mode]["settings"].values())
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
