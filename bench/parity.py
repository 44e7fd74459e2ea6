"""Are greedy drafts those of transformers' own `generate`? `make engine-parity`, with every accelerator on and off.

Accelerators: the prefix cache, look-ahead, several drafts in one pass, and the lean forward pass that all of them use.
Three modes. Free: no grammar; the draft is held against `generate` up to where the draft ends. Grammar: `generate` gets
a logits processor that allows at each step what the draft's own grammar allows there, and the forced token where there
is one; so what is held against each other is the decoding, not the grammar. Masked: the same without forced tokens, on
both sides; in how many drafts that changes the tokens, and in how many the text, is counted under `forcing`. All in
float32, where only the order of additions differs: two tokens nearer to each other than that may change places, and
such a draft counts as different here.

Prompts are dealt to `--processes` processes. All of them are compared by grammar with all accelerators on and with all
off, every tenth one free, masked and with each accelerator alone. Where the time is short, fewer are compared.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from bench.requests import requests
from bench.run import Clock, base_folder, options, stamp, write
from slm.engine.engine import DraftEngine
from slm.engine.model import LoadedModel, load
from slm.engine.tokenizer import Tokens
from slm.format.grammar import Constraint, Offer
from slm.format.pattern import render_prompt
from slm.protocol import DraftCommand, Event, Token

CACHE_BYTES = 64 << 20
SLOTS = 8
MINUTES = 40.0
GENERATE_SHARE = 0.5
"""Share of the time in which `generate` runs; the settings take the rest."""
SPARSE = 10
"""Free and masked drafts are compared for every tenth command only."""
WHOLE = ("all off", "all on")
"""Settings that no prompt is left out of."""


@dataclass(frozen=True, slots=True)
class Mode:
    """The constraints on drafts in one comparison."""

    grammar: bool
    forced: bool = True
    """True if forced tokens are written as the tokenizer divides them."""
    sparse: bool = True
    """True if only every `SPARSE`-th command is compared in this mode."""


MODES = {"free": Mode(False), "grammar": Mode(True, sparse=False), "masked": Mode(True, forced=False)}


@dataclass(frozen=True, slots=True)
class Switches:
    """The accelerators that are on."""

    cache: bool = False
    prompt_lookup: bool = False
    together: bool = False

    def engine(self, loaded: LoadedModel, *, forced: bool = True) -> DraftEngine:
        """Return an engine with these accelerators."""
        return DraftEngine(
            loaded,
            cache_bytes=CACHE_BYTES if self.cache else 0,
            slots=SLOTS if self.together else 1,
            prompt_lookup=self.prompt_lookup,
            fast_forward=forced,
        )


SETTINGS = {
    "all off": Switches(),
    "prefix cache": Switches(cache=True),
    "look-ahead": Switches(prompt_lookup=True),
    "eight at once": Switches(together=True),
    "all on": Switches(True, True, True),
}


class _Allowed(LogitsProcessor):  # type: ignore[misc]
    """The draft's grammar in `generate`: the forced token where there is one and it counts, else what is allowed."""

    def __init__(self, constraint: Constraint, prompt_tokens: int, end_id: int, *, forced: bool) -> None:
        self._constraint, self._read, self._end_id, self._forced = constraint, prompt_tokens, end_id, forced

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        for token in ids[0, self._read :].tolist():
            self._constraint.write(token)
            self._read += 1
        mask = torch.zeros(scores.shape[-1], dtype=torch.bool)
        if self._constraint.ended:
            mask[self._end_id] = True
        elif self._forced and (forced := self._constraint.forced()):
            mask[forced[0]] = True
        else:
            mask |= torch.from_numpy(self._constraint.allowed())
        return scores.masked_fill(~mask, -torch.inf)


def generated(loaded: LoadedModel, command: DraftCommand, *, forced: bool = True) -> list[int]:
    """The tokens of transformers' greedy `generate`, up to an end token or `max_tokens`."""
    prompt = loaded.tokens.prompt(render_prompt(command.messages, command.tools, loaded.tokens.frame))
    ends = sorted(loaded.tokens.end_ids)
    processors = LogitsProcessorList()
    if command.grammar:
        offer = Offer.of(command.tools, command.tool_choice, command.forced_tool, command.parallel_tool_calls)
        constraint = Constraint(offer, loaded.tokens.grammar_tokenizer)
        processors.append(_Allowed(constraint, len(prompt), ends[0], forced=forced))
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        made = loaded.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=command.max_tokens,
            eos_token_id=ends, pad_token_id=ends[0], logits_processor=processors, repetition_penalty=1.0,
        )  # fmt: skip
    tokens: list[int] = made[0, len(prompt) :].tolist()
    return tokens[:-1] if tokens and tokens[-1] in ends else tokens


def drafted(engine: DraftEngine, commands: Sequence[DraftCommand]) -> list[list[int]]:
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
    reference: LoadedModel,
    ours: LoadedModel,
    commands: Sequence[DraftCommand],
    over: Callable[[], bool] = lambda: False,
    on_progress: Callable[[str], None] = lambda _: None,
    sparse: int = 1,
) -> dict[str, Any]:
    """Count the drafts that equal `generate` token for token, by mode and setting.

    Args:
        reference: not used by an engine: its model stays transformers' own.
        ours: the same weights.
        over: whether it is time to take no further command; at least one is taken.
        sparse: free and masked drafts, and accelerators one by one, are compared for every so many-th command only.

    Returns:
        By mode: `tokens`, and `settings` with the places of the drafts that differ. `forcing`: the places of those that
        forced tokens give other tokens or another text than the masked model writes by itself.
    """
    expected: dict[str, dict[int, list[int]]] = {mode: {} for mode in MODES}
    for place, command in enumerate(commands):
        if place and over():
            break
        for name, mode in MODES.items():
            if not mode.sparse or place % sparse == 0:
                asked = msgspec.structs.replace(command, grammar=mode.grammar)
                expected[name][place] = generated(reference, asked, forced=mode.forced)
        on_progress(f"generate {place + 1} of {len(commands)}")
    made: dict[str, Any] = {}
    for mode_name, mode in MODES.items():
        rows = {}
        for name, switches in SETTINGS.items():
            every = 1 if name in WHOLE else sparse
            places = [place for place in expected[mode_name] if place % every == 0]
            asked_all = [msgspec.structs.replace(commands[place], grammar=mode.grammar) for place in places]
            got = drafted(switches.engine(ours, forced=mode.forced), asked_all)
            found = differences([expected[mode_name][place] for place in places], got, free=not mode.grammar)
            different = [places[n] for n in found]
            rows[name] = {"identical": len(places) - len(different), "of": len(places), "different": different}
            on_progress(f"{mode_name}: {name}: {rows[name]['identical']} of {len(places)} identical")
        made[mode_name] = {"tokens": sum(map(len, expected[mode_name].values())), "settings": rows}
    made["forcing"] = forcing(ours.tokens, expected["grammar"], expected["masked"])
    return made


def forcing(vocabulary: Tokens, forced: Mapping[int, list[int]], masked: Mapping[int, list[int]]) -> dict[str, Any]:
    """Places of the masked drafts that have other tokens, or another text, than those with forced tokens. None, where
    the grammar's masks leave at a forced token's place that token alone."""

    def text(tokens: list[int]) -> bytes:
        return b"".join(vocabulary.piece(token) for token in tokens)

    return {
        "of": len(masked),
        "other_tokens": [place for place, tokens in masked.items() if forced[place] != tokens],
        "other_text": [place for place, tokens in masked.items() if text(forced[place]) != text(tokens)],
    }


def joined(parts: Sequence[dict[str, Any]], places: Sequence[Sequence[int]]) -> dict[str, Any]:
    """One result of several, each over a share of the prompts.

    Args:
        places: of each share's prompts in the whole list.
    """
    made: dict[str, Any] = {}
    for mode in MODES:
        rows = {}
        for name in SETTINGS:
            found = [part[mode]["settings"][name] for part in parts]
            rows[name] = {
                "identical": sum(row["identical"] for row in found),
                "of": sum(row["of"] for row in found),
                "different": sorted(
                    where[n] for row, where in zip(found, places, strict=True) for n in row["different"]
                ),
            }
        made[mode] = {"tokens": sum(part[mode]["tokens"] for part in parts), "settings": rows}
    counts = [part["forcing"] for part in parts]
    made["forcing"] = {"of": sum(count["of"] for count in counts)} | {
        name: sorted(where[n] for count, where in zip(counts, places, strict=True) for n in count[name])
        for name in ("other_tokens", "other_text")
    }
    return made


@dataclass(frozen=True, slots=True)
class Share:
    """The commands that one process compares."""

    folder: Path
    adapter: Path
    threads: int
    minutes: float
    commands: list[DraftCommand]
    name: str


def compared_share(share: Share) -> dict[str, Any]:
    """`compared` in a process of its own."""
    torch.set_num_threads(share.threads)
    clock = Clock(share.minutes)
    return compared(
        load(share.folder, share.adapter),
        load(share.folder, share.adapter),
        share.commands,
        lambda: clock.past(GENERATE_SHARE),
        lambda line: clock.report(f"[{share.name}] {line}"),
        sparse=SPARSE,
    )


def main() -> int:
    """Compare and write the result. Returns the exit code: 1 where a draft differs."""
    parser = options("bench.parity", __doc__, minutes=MINUTES)
    parser.add_argument("--prompts", type=int, default=200, help="default: %(default)s")
    parser.add_argument("--max-tokens", type=int, default=40, help="of a draft (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=2, help="default: %(default)s")
    arguments = parser.parse_args()
    folder = base_folder()
    info = load(folder, arguments.adapter).info
    commands = [
        msgspec.structs.replace(request.command, max_tokens=arguments.max_tokens)
        for request in requests(arguments.prompts)
    ]
    count = max(1, min(arguments.processes, len(commands)))
    places = [list(range(start, len(commands), count)) for start in range(count)]
    shares = [
        Share(
            folder, arguments.adapter, arguments.threads, arguments.minutes,
            [commands[place] for place in where], f"{number + 1}/{count}",
        )
        for number, where in enumerate(places)
    ]  # fmt: skip
    made = {
        **stamp(info, commands),
        "max_tokens": arguments.max_tokens,
        "dtype": "float32",
        "asked_prompts": len(commands),
    }
    clock = Clock(arguments.minutes)
    with ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = joined(list(pool.map(compared_share, shares)), places)
    made |= {"prompts": found["grammar"]["settings"]["all on"]["of"], "minutes": clock.minutes, **found}
    write(arguments.out, "parity", made)
    wrong = any(row["different"] for mode in MODES for row in found[mode]["settings"].values())
    print({mode: {name: row["identical"] for name, row in found[mode]["settings"].items()} for mode in MODES})
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
