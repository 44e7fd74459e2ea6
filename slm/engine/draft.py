"""The state of one draft: its tokens, those that are still to be measured, and the events that report them.

No model in here: the engine feeds `pending` to a model and hands the distributions to `take`. Tokens that the grammar
forces are written at once, `FORCED_AT_ONCE` at most, and measured with the next forward pass, in which they cost a row
and not a step. Guesses of what the model will choose are read in the same pass; those that agree with its choice save a
step each, the others are dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from slm.engine.kv_cache import KVCache
from slm.engine.signals import Distribution, Marks, MeasuredSignals
from slm.engine.speculation import PromptLookup, value_under_way
from slm.engine.tokenizer import TextStream, Tokens
from slm.format.grammar import Guide, Mask
from slm.format.pattern import DraftSpan, PatternError, SpanTracker, parse_plan
from slm.protocol import Done, DraftFailed, Event, Finish, PlanMade, Started, Token

Clock = Callable[[], float]

FORCED_AT_ONCE = 64
"""Forced tokens measured in one pass: each takes a row of logits, and other drafts wait for the pass."""


def blank_line_behind_text(text: str) -> bool:
    """True if a draft without a grammar has ended: drafts hold no blank line, and where only text separates turns, a
    blank line ends the turn."""
    return "\n\n" in text.lstrip()


class DraftState:
    """State of one draft. Events collect in `events`, in order, until the caller takes them away.

    Without a constraint a draft ends at any special token. With a constraint it ends where the grammar does.

    Args:
        prompt: tokens, at least one.
        kv: empty, with room for `prompt` and `max_tokens`.
        prompt_lookup: the source of speculated tokens; None speculates on nothing.
        fast_forward: whether tokens that the grammar forces are written without a step; without it the model chooses
            among what the grammar allows in their places.
        max_tokens: bound on the draft's own tokens.
        over: whether a draft with this text has come to its end, asked behind each token, forced or not.
        alternatives: number of most probable tokens to report with each token that is written.
    """

    def __init__(
        self,
        prompt: list[int],
        kv: KVCache,
        constraint: Guide | None,
        tokens: Tokens,
        max_tokens: int,
        *,
        prompt_lookup: PromptLookup | None,
        fast_forward: bool = True,
        over: Callable[[str], bool] = lambda _: False,
        alternatives: int = 0,
        began: float,
        queue_s: float,
        clock: Clock,
    ) -> None:
        self.kv = kv
        self.ids = list(prompt)
        """Prompt and draft."""
        self.events: list[Event] = []
        self.finished = False
        self.failed = False
        self.cached = 0
        """Prompt tokens that were taken from a cache; set by the code that filled `kv`."""
        self.prompt_tokens, self._max_tokens = len(prompt), max_tokens
        self._prompt_lookup, self._over, self._alternatives = prompt_lookup, over, alternatives
        self._fast_forward = fast_forward
        self._guesses: list[int] = []
        self._span = DraftSpan.SYNTAX
        self._constraint, self._tokens = constraint, tokens
        self._unmeasured: list[Mask] = []
        """For each forced token at the end of `ids`: what the grammar allowed in its place."""
        self._coming: list[int] = []
        """Forced tokens that are not written yet."""
        self._ending: Finish | None = None
        self._text, self._stream, self._spans = "", TextStream(tokens), SpanTracker()
        self._marks = Marks()
        self._planned = False
        self._clock, self._began, self._queue_s = clock, began, queue_s
        self._decode_began: float | None = None
        self._steps = 0
        self._force()

    @property
    def pending(self) -> list[int]:
        """Tokens that the model has to read next; the last one is left out where it chooses nothing behind it."""
        end = len(self.ids) if self._choosing else len(self.ids) - 1
        return self.ids[self.kv.length : end] + self._guesses

    @property
    def rows(self) -> int:
        """Distributions, of the last pending tokens, that `take` needs."""
        return len(self._unmeasured) + (1 if self._choosing else 0) + len(self._guesses)

    @property
    def _choosing(self) -> bool:
        """True if the model chooses the token after the forced ones."""
        return not self._ending and not self._coming

    @property
    def decoding(self) -> bool:
        """True once the whole prompt has been read."""
        return self._decode_began is not None

    def guess(self) -> None:
        """Guess the next tokens; they are verified in the next pass, together with the pending tokens."""
        if self._prompt_lookup is None or not self._choosing:
            return
        left = self._max_tokens - (len(self.ids) - self.prompt_tokens) - 1
        value = value_under_way(self._text) if self._span is DraftSpan.VALUE and not self._unmeasured else ""
        guesses = self._prompt_lookup.guess(self.ids, value)[: max(0, left)]
        self._guesses = guesses if self._constraint is None else self._constraint.possible(guesses)

    def take(self, distribution: Distribution) -> None:
        """Measure the forced tokens, write the model's choice, and write the tokens that the grammar then forces.

        Args:
            distribution: distributions at the last `rows` pending tokens, in order.

        Raises:
            GrammarError: the grammar failed at this token.
        """
        self._count()
        guesses, self._guesses = self._guesses, []
        self.kv.set_length(self.kv.length - len(guesses))
        place = self._measure(distribution, 0, len(self._unmeasured))
        if self._coming:
            self._force()
            return
        while not self._closed():
            written = self._write(distribution, place)
            read = _agreeing(guesses, written)
            guesses = guesses[read:]
            self.kv.set_length(self.kv.length + read)
            place = self._measure(distribution, place + 1, min(read, len(self._unmeasured)))
            if read < len(written):
                self._closed()
                return

    def _closed(self) -> bool:
        """End the draft where it has come to its end and all is measured; whether it is finished."""
        if self._ending and not self._unmeasured:
            self.finish(self._ending)
        return self.finished

    def _measure(self, distribution: Distribution, place: int, count: int) -> int:
        """Measure the first `count` forced tokens by the rows from `place` on, as far as the draft goes; the row behind
        the last one."""
        start = len(self.ids) - len(self._unmeasured)
        forced, masks = self.ids[start : start + count], self._unmeasured[:count]
        for token, signals in zip(
            forced, distribution.signals(range(place, place + count), forced, masks, self._alternatives), strict=True
        ):
            del self._unmeasured[0]
            self._emit(token, signals, forced=True)
            if self.finished:
                break
        return place + count

    def _write(self, distribution: Distribution, place: int) -> list[int]:
        """Write the model's choice at a row and what is forced behind it; nothing where the choice ends the draft."""
        before = len(self.ids)
        wanted = self._constraint.allowed() if self._constraint is not None else None
        token = distribution.best(place, wanted)
        if token in self._tokens.end_ids or (self._constraint is None and token in self._tokens.special_ids):
            self.finish("stop")
            return []
        (signals,) = distribution.signals([place], [token], [wanted], self._alternatives)
        self.ids.append(token)
        self._emit(token, signals, forced=False)
        if not self.finished:
            if self._constraint is not None:
                self._constraint.write(token)
            self._force()
        return self.ids[before:]

    def finish(self, finish: Finish) -> None:
        """End the draft with what is measured; forced tokens that were not are dropped. Does nothing a second time."""
        if self.finished:
            return
        self.finished = True
        now = self._clock()
        del self.ids[len(self.ids) - len(self._unmeasured) :]
        self._coming = []
        self.events.append(
            Done(
                text=self._text,
                finish=finish,
                decode_s=0.0 if self._decode_began is None else now - self._decode_began,
                steps=self._steps,
                tokens=len(self.ids) - self.prompt_tokens,
                warnings=[] if self._constraint is None else list(self._constraint.warnings),
                hidden=self._marks.rows(),
            )
        )

    def fail(self, code: str, message: str) -> None:
        """End the draft with a failure. Does nothing once it is finished."""
        if not self.finished:
            self.finished = self.failed = True
            self.events.append(DraftFailed(code=code, message=message))

    def expire(self) -> None:
        """End the draft because its time is up: with what there is, or with a failure before the first token."""
        if self._decode_began is None:
            self.fail("deadline", "the deadline passed before the first token")
        else:
            self.finish("deadline")

    def _count(self) -> None:
        if self._decode_began is not None:
            self._steps += 1
            return
        self._decode_began = self._clock()
        self.events.append(
            Started(
                prompt_tokens=self.prompt_tokens,
                cached_tokens=self.cached,
                queue_s=self._queue_s,
                prefill_s=self._decode_began - self._began,
            )
        )

    def _force(self) -> None:
        """Write what the grammar leaves no choice about, as much as one pass may measure, and see whether the draft has
        come to its end. All that was forced before must be measured."""
        left = self._max_tokens - (len(self.ids) - self.prompt_tokens)
        if self._constraint is not None:
            room = min(left, FORCED_AT_ONCE)
            while self._fast_forward and (coming := self._coming or self._constraint.forced()):
                count = room - len(self._unmeasured)
                for token in coming[:count]:
                    self._unmeasured.append(self._constraint.allowed())
                    self._constraint.write(token)
                    self.ids.append(token)
                self._coming = coming[count:]
                if self._coming:
                    break
            if self._constraint.ended:
                self._ending = "stop"
        if not self._ending and left <= len(self._unmeasured):
            self._ending = "length"
            self._coming = []

    def _emit(self, token: int, signals: MeasuredSignals, *, forced: bool) -> None:
        text = self._stream.feed(token)
        # A token inside a character belongs where the character will; any other character shows where that is.
        span = self._spans.feed(text or "\N{REPLACEMENT CHARACTER}")
        self._text += text
        self._span = span
        self._marks.add(signals.hidden, span)
        self.events.append(
            Token(
                id=token,
                text=text,
                logprob=signals.logprob,
                margin=signals.margin,
                entropy=signals.entropy,
                feasible_mass=signals.feasible_mass,
                forced=forced,
                span=int(span),
                layer_agreement=signals.layer_agreement,
                alternatives=[
                    (self._tokens.piece(id_).decode(errors="replace"), log) for id_, log in signals.alternatives
                ],
            )
        )
        self._emit_plan()
        if self._over(self._text):
            self.finish("stop")

    def _emit_plan(self) -> None:
        if self._planned or "\n" not in self._text:
            return
        self._planned = True
        try:
            kind, names = parse_plan(self._text.partition("\n")[0])
        except PatternError:  # Free text without a plan: there is no event to emit.
            return
        self.events.append(PlanMade(kind=kind, names=list(names)))


def _agreeing(guesses: Sequence[int], written: Sequence[int]) -> int:
    """Length of the common prefix of two token lists."""
    pairs = enumerate(zip(guesses, written, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(guesses), len(written)))
