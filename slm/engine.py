"""The small model at work: prompts in, events out, one forward pass a step.

Decoding is greedy. The grammar decides what may be written; the signals are always those of the distribution without
it. The engine works in steps over a list of drafts so that requests can join and leave between any two steps; today
each draft of the list has its own forward pass, and `slots` says how many are worth running at once.

Not safe to share between threads.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from slm.cache import KeyValues, PrefixCache
from slm.draft import Clock, Drafting
from slm.grammar import Constraint, GrammarError, Offer, ToolError
from slm.model import DTypeName, Loaded, load
from slm.pattern import PatternError, render_prompt
from slm.protocol import DraftCommand, Event, Info
from slm.signals import Distribution

PREFILL_TOKENS = 512
"""Prompt tokens read in one step: a cancelled draft holds the engine no longer than that."""
CACHE_BYTES = 256 * 1024 * 1024
"""Default bound on the prefix cache."""


class DraftError(ValueError):
    """A draft that cannot be made. `code` is one of `slm.protocol.Failed`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Engine:
    """A loaded model that drafts.

    Args:
        loaded: taken over.
        cache_bytes: bound on the keys and values kept for shared prefixes.
        clock: seconds, monotonic.
    """

    slots = 1
    """Drafts worth running at once: more would only share the same forward passes by turns."""

    def __init__(self, loaded: Loaded, *, cache_bytes: int = CACHE_BYTES, clock: Clock = time.monotonic) -> None:
        self._loaded, self._clock = loaded, clock
        self._prefixes = PrefixCache(loaded.shape, cache_bytes)

    @classmethod
    def load(cls, folder: Path, adapter: Path | None = None, dtype: DTypeName = "float32") -> Engine:
        """Load a Hugging Face folder. Raises: `slm.model.LoadError`."""
        return cls(load(folder, adapter, dtype))

    @property
    def info(self) -> Info:
        """What is loaded."""
        return self._loaded.info

    def begin(self, command: DraftCommand, *, queue_s: float = 0.0) -> Drafting:
        """Prepare a draft; no forward pass yet.

        Raises:
            DraftError: the command is wrong, its prompt too long, or its tools cannot be put into a grammar.
        """
        began = self._clock()
        loaded = self._loaded
        if command.max_tokens < 1:
            raise DraftError("bad_request", "max_tokens: must be at least 1")
        try:
            offer = Offer.of(command.tools, command.tool_choice, command.forced_tool, command.parallel_tool_calls)
            segments = render_prompt(command.messages, command.tools, loaded.tokens.frame)
        except (ToolError, PatternError) as exc:
            raise DraftError("bad_request", str(exc)) from exc
        room = loaded.context_tokens - command.max_tokens
        least = loaded.tokens.at_least(segments)  # So that megabytes are not tokenised to be refused.
        prompt = loaded.tokens.prompt(segments) if least <= room else []
        if max(least, len(prompt)) > room:
            raise DraftError(
                "prompt_too_long", f"the prompt has {max(least, len(prompt))} tokens or more, there is room for {room}"
            )
        memory = KeyValues(loaded.shape, len(prompt) + command.max_tokens)
        with torch.inference_mode():
            cached = self._prefixes.lookup(prompt[:-1], memory)
        try:
            return Drafting(
                prompt,
                memory,
                cached,
                Constraint(offer, loaded.tokens.grammar_tokenizer) if command.grammar else None,
                loaded.tokens,
                command.max_tokens,
                began=began,
                queue_s=queue_s,
                clock=self._clock,
            )
        except GrammarError as exc:
            raise DraftError("schema_unsupported", str(exc)) from exc

    def step(self, drafts: Sequence[Drafting]) -> None:
        """One forward pass for each draft that is not finished; what it brings is in their `events`.

        A draft whose grammar gives up ends with `Failed`.

        Raises:
            ArithmeticError: the model gave no distribution.
        """
        with torch.inference_mode():
            for draft in drafts:
                if not draft.finished:
                    self._forward(draft)

    def release(self, draft: Drafting) -> None:
        """Keep what of the draft's keys and values the next one may share. Call once, unless a step raised."""
        with torch.inference_mode():
            self._prefixes.store(draft.ids[: draft.memory.length], draft.memory)

    def draft(self, command: DraftCommand) -> Iterator[Event]:
        """A whole draft of its own, event by event. Raises: DraftError, ArithmeticError."""
        draft = self.begin(command)
        while not draft.finished:
            self.step([draft])
            yield from draft.events
            draft.events.clear()
        self.release(draft)

    def _forward(self, draft: Drafting) -> None:
        pending, rows = draft.pending, draft.rows
        if len(pending) - rows >= PREFILL_TOKENS:
            self._logits(draft, pending[:PREFILL_TOKENS], 1)
            return
        try:
            wanted = draft.wanted
            draft.take(Distribution(self._logits(draft, pending, rows)), wanted)
        except GrammarError as exc:
            draft.fail("schema_unsupported", str(exc))

    def _logits(self, draft: Drafting, ids: Sequence[int], rows: int) -> torch.Tensor:
        """Read `ids` and give the logits behind the last `rows` of them: shape (rows, vocabulary)."""
        start = draft.memory.length
        out = self._loaded.model(
            input_ids=torch.tensor([ids]),
            position_ids=torch.arange(start, start + len(ids)).unsqueeze(0),
            past_key_values=draft.memory,
            use_cache=True,
            logits_to_keep=rows,
        )
        logits: torch.Tensor = out.logits[0]
        return logits
