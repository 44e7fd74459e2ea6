"""The small model at work: prompts in, events out, one forward pass a step for all drafts under way.

Decoding is greedy. The grammar decides what may be written; the signals are always those of the distribution without
it. Drafts join and leave between any two steps. What a draft says does not depend on the others, up to rounding: the
same products are added in another order where more rows share a pass.

Not safe to share between threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from slm.engine.draft import Clock, DraftState, blank_line_behind_text
from slm.engine.forward import forward_of
from slm.engine.kv_cache import KVCache, PrefixCache, TokenChunk
from slm.engine.model import DeviceName, DTypeName, LoadedModel, LoadError, load
from slm.engine.shortlist import Kind, ToolShortlist, shortlist_of
from slm.engine.signals import CANDIDATES, Distribution, Lens, Pass
from slm.engine.speculation import PromptLookup
from slm.format.gbnf_guide import GbnfGuide
from slm.format.grammar import Constraint, GrammarError, Guide, Offer, ToolError
from slm.format.pattern import PatternError, Segment, render_prompt
from slm.protocol import CompleteCommand, DraftCommand, DraftFailed, Event, Info

PREFILL_TOKENS = 512
"""Prompt tokens read in one step: a cancelled draft holds the engine no longer than that."""
PREFILL_BESIDE = 128
"""The same while other drafts are decoding: they wait no longer than that for their next token."""
SLOTS = 8
"""Default number of drafts under way at once."""
CACHE_BYTES = 256 * 1024 * 1024
"""Default bound on the prefix cache."""


class DraftError(ValueError):
    """A draft cannot be made. `code` is one of the codes of `slm.protocol.DraftFailed`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class DraftEngine:
    """A loaded model that drafts.

    Args:
        loaded: the model; the engine takes it over and may change it.
        cache_bytes: bound on the keys and values kept for shared prefixes.
        slots: number of drafts to run at once.
        prompt_lookup: whether to speculate on tokens; changes the time of a draft and nothing else.
        fast_forward: whether tokens that the grammar forces are written without a decoding step.
        shortlist: selects the tools of a long list that the model is shown; None shows all.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        cache_bytes: int = CACHE_BYTES,
        slots: int = SLOTS,
        prompt_lookup: bool = True,
        fast_forward: bool = True,
        shortlist: ToolShortlist | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._shortlist = shortlist
        self._loaded, self._clock = loaded, clock
        self._prompt_lookup, self._fast_forward = prompt_lookup, fast_forward
        self.slots = slots
        self._cache_bytes = cache_bytes
        self._prefixes = PrefixCache(loaded.shape, cache_bytes)
        with torch.inference_mode():
            self._forward = forward_of(loaded.model, int8=loaded.info.dtype == "int8")
        self._oldest_next = False
        """True if the next pass reads the oldest prompt, False if the one with the fewest passes left."""
        self._lens = None if self._forward.head is None else Lens(self._forward.head)

    @classmethod
    def load(
        cls,
        folder: Path,
        adapter: Path | None = None,
        dtype: DTypeName = "float32",
        *,
        cache_bytes: int = CACHE_BYTES,
        slots: int = SLOTS,
        shortlist: tuple[Kind, int] = ("none", 0),
        device: DeviceName = "cpu",
    ) -> DraftEngine:
        """Load a Hugging Face folder. `shortlist`: its kind and `keep`. Raises: `slm.engine.model.LoadError`."""
        loaded = load(folder, adapter, dtype, device)
        try:
            return cls(loaded, cache_bytes=cache_bytes, slots=slots, shortlist=shortlist_of(*shortlist, loaded))
        except ValueError as exc:  # PrecisionError among them
            raise LoadError(f"cannot load {folder.name}: {exc}") from exc

    @property
    def info(self) -> Info:
        """Description of the loaded model, with its hashes."""
        return self._loaded.info

    def begin(self, command: DraftCommand | CompleteCommand, *, queue_s: float = 0.0) -> DraftState:
        """Prepare a draft or a completion without running a forward pass.

        Raises:
            DraftError: the command is wrong, its prompt too long, or no grammar can be made of its tools or its own.
        """
        began = self._clock()
        over: Callable[[str], bool]
        if command.max_tokens < 1:
            raise DraftError("bad_request", "max_tokens: must be at least 1")
        if isinstance(command, CompleteCommand):
            if not 0 <= command.alternatives <= CANDIDATES:
                raise DraftError("bad_request", f"alternatives: must be from 0 to {CANDIDATES}")
            segments = self._loaded.tokens.segments(command.prompt)
            make, said = partial(self._guide, command), command.prompt
            over, alternatives = partial(_holds_one, command.stop), command.alternatives
        else:
            segments, offer = self._offered(command)
            turns = render_prompt(command.messages, [], self._loaded.tokens.frame)
            make, said = partial(self._constraint, command, offer), "".join(segment.text for segment in turns)
            over, alternatives = (_never if command.grammar else blank_line_behind_text), 0
        prompt = self._prompt(segments, command.max_tokens)
        try:
            return DraftState(
                prompt,
                KVCache(self._loaded.shape, len(prompt) + command.max_tokens),
                make(),
                self._loaded.tokens,
                command.max_tokens,
                prompt_lookup=PromptLookup(said, self._loaded.tokens.encode) if self._prompt_lookup else None,
                fast_forward=self._fast_forward,
                over=over,
                alternatives=alternatives,
                began=began,
                queue_s=queue_s,
                clock=self._clock,
            )
        except GrammarError as exc:
            raise DraftError("schema_unsupported", str(exc)) from exc

    def _prompt(self, segments: Sequence[Segment], max_tokens: int) -> list[int]:
        """Raises DraftError where there is no room for it, or nothing in it."""
        tokens, room = self._loaded.tokens, self._loaded.context_tokens - max_tokens
        least = tokens.at_least(segments)  # So that megabytes are not tokenised to be refused.
        prompt = tokens.prompt(segments) if least <= room else []
        if max(least, len(prompt)) > room:
            raise DraftError(
                "prompt_too_long", f"the prompt has {max(least, len(prompt))} tokens or more, there is room for {room}"
            )
        if not prompt:
            raise DraftError("bad_request", "prompt: must not be empty")
        return prompt

    def _offered(self, command: DraftCommand) -> tuple[list[Segment], Offer]:
        """The prompt of a draft and what it may call. Raises: DraftError."""
        try:
            Offer.of(command.tools, command.tool_choice, command.forced_tool, command.parallel_tool_calls)
            tools = self._shown(command)
            offer = Offer.of(tools, command.tool_choice, command.forced_tool, command.parallel_tool_calls)
            return render_prompt(command.messages, tools, self._loaded.tokens.frame), offer
        except (ToolError, PatternError) as exc:
            raise DraftError("bad_request", str(exc)) from exc

    def _constraint(self, command: DraftCommand, offer: Offer) -> Guide | None:
        return Constraint(offer, self._loaded.tokens.grammar_tokenizer) if command.grammar else None

    def _guide(self, command: CompleteCommand) -> Guide | None:
        if command.grammar is None:
            return None
        return GbnfGuide(command.grammar, self._loaded.tokens.grammar_tokenizer)

    def _shown(self, command: DraftCommand) -> Sequence[Mapping[str, Any]]:
        """The tools that the model sees."""
        if self._shortlist is None:
            return command.tools
        return self._shortlist.of(command.messages, command.tools, command.forced_tool)

    def step(self, drafts: Sequence[DraftState]) -> None:
        """Run one forward pass for the drafts that are not finished; the results are appended to their `events`.

        Where prompts are long only some of them are read on. A draft whose grammar gives up, or that the model gives
        no distribution for, ends with `DraftFailed`.
        """
        with torch.inference_mode():
            work = self._work([draft for draft in drafts if not draft.finished])
            if not work:
                return
            made = self._forward([chunk for _, chunk in work])
            row = 0
            for draft, chunk in work:
                if chunk.rows:
                    self._take(draft, made.rows(row, chunk.rows))
                row += chunk.rows

    def release(self, draft: DraftState) -> None:
        """Store the draft's keys and values for later drafts with the same prefix. Call once, unless a step raised."""
        if not draft.failed:
            with torch.inference_mode():
                self._prefixes.store(draft.ids[: draft.kv.length], draft.kv)

    def clear_prefix_cache(self) -> None:
        """Drop all shared prefixes: what follows does not depend on what came before, not even by rounding."""
        self._prefixes = PrefixCache(self._loaded.shape, self._cache_bytes)

    def draft(self, command: DraftCommand | CompleteCommand) -> Iterator[Event]:
        """Make one draft and yield its events. Raises DraftError; later errors are yielded as `DraftFailed`."""
        draft = self.begin(command)
        while not draft.finished:
            self.step([draft])
            yield from draft.events
            draft.events.clear()
        self.release(draft)

    def draft_many(self, commands: Iterable[DraftCommand | CompleteCommand]) -> Iterator[tuple[int, list[Event]]]:
        """Draft many commands, `slots` at once; deadlines are ignored.

        Commands are taken from the list as slots come free. Those that share their tools share the reading of them
        where they stand one after another.

        Returns:
            For each command its place in the list and all its events, the last one `Done` or `DraftFailed`; in the
            order in which drafts end. A command that is refused fails by the refusal's code.
        """
        waiting = enumerate(commands)
        active: dict[int, DraftState] = {}
        more = True
        while more or active:
            while more and len(active) < self.slots:
                place, command = next(waiting, (-1, None))
                if command is None:
                    more = False
                    break
                try:
                    active[place] = self.begin(command)
                except DraftError as exc:
                    yield place, [DraftFailed(code=exc.code, message=str(exc))]
            self.step(list(active.values()))
            for place, draft in [item for item in active.items() if item[1].finished]:
                del active[place]
                self.release(draft)
                yield place, draft.events

    def _work(self, drafts: Sequence[DraftState]) -> list[tuple[DraftState, TokenChunk]]:
        """The chunk that each draft reads in the next pass; only one prompt is read on. A pass over a prompt has enough
        rows by itself, and the next prompt finds the tokens read before it in the cache."""
        work = []
        for draft in drafts:
            if draft.decoding:
                draft.guess()
                work.append((draft, TokenChunk(draft.kv, draft.pending, draft.rows)))
        unread = [draft for draft in drafts if not draft.decoding]
        if unread:
            most = PREFILL_BESIDE if work else PREFILL_TOKENS
            reader = self._next(unread, most)
            for passed in unread:
                if passed is not reader and passed.kv.length:  # What it has read, the reader may share.
                    self._prefixes.store(passed.ids[: passed.kv.length], passed.kv)
            work.append((reader, self._reading(reader, most)))
        return work

    def _next(self, unread: Sequence[DraftState], most: int) -> DraftState:
        """Whose prompt is read on: by turns the one with the fewest passes left, so that no draft waits for a long
        prompt to its end, and the one that came first, so that none waits for ever."""
        if len(unread) == 1:
            self._oldest_next = False
            return unread[0]
        by_age, self._oldest_next = self._oldest_next, not self._oldest_next
        return unread[0] if by_age else min(unread, key=lambda draft: -(-self._left(draft) // most))

    def _left(self, draft: DraftState) -> int:
        """Prompt tokens that are neither read nor held for it."""
        return draft.prompt_tokens - max(draft.kv.length, self._prefixes.held(_reusable(draft)))

    def _reading(self, draft: DraftState, most: int) -> TokenChunk:
        draft.cached += self._prefixes.lookup(_reusable(draft), draft.kv)
        pending, rows = draft.pending, draft.rows
        return (
            TokenChunk(draft.kv, pending, rows)
            if len(pending) - rows < most
            else TokenChunk(draft.kv, pending[:most], 0)
        )

    def _take(self, draft: DraftState, rows: Pass) -> None:
        first = not draft.decoding
        try:
            draft.take(Distribution(rows, self._lens))
        except GrammarError as exc:
            draft.fail("schema_unsupported", str(exc))
        except ArithmeticError as exc:
            draft.fail("internal", str(exc))
        if first and not draft.failed:  # So that drafts begun meanwhile need not read the same tools.
            self._prefixes.store(draft.ids[: draft.prompt_tokens], draft.kv)


def _reusable(draft: DraftState) -> list[int]:
    """The prompt tokens that may come from the cache: all but the last, whose distribution has to be computed."""
    return draft.ids[: draft.prompt_tokens - 1]


def _holds_one(stop: Sequence[str], text: str) -> bool:
    return any(one in text for one in stop)


def _never(text: str) -> bool:
    return False
