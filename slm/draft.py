"""One draft under way: what is written, what is still to be measured, and the events that tell of it.

No model in here: the engine feeds `pending` to a model and hands the distributions to `take`. Tokens that the grammar
forces are written at once and measured with the next forward pass, in which they cost a row and not a step.
"""

from __future__ import annotations

from collections.abc import Callable

from slm.cache import KeyValues
from slm.grammar import Constraint, Mask
from slm.pattern import PatternError, SpanTracker, parse_plan
from slm.protocol import Done, Event, Failed, Finish, PlanMade, Started, Token
from slm.signals import Distribution, Signals
from slm.tokens import TextStream, Tokens

Clock = Callable[[], float]


class Drafting:
    """State of one draft. Events collect in `events`, in order, until somebody takes them away.

    Without a constraint a draft ends at any special token, or at a blank line behind some text: no draft holds one,
    and where turns are told apart by text alone it is the turn's end. With a constraint it ends where the grammar does.

    Args:
        prompt: tokens, at least one.
        cached: how many of them `memory` already holds; fewer than all.
        max_tokens: bound on the draft's own tokens.
    """

    def __init__(
        self,
        prompt: list[int],
        memory: KeyValues,
        cached: int,
        constraint: Constraint | None,
        tokens: Tokens,
        max_tokens: int,
        *,
        began: float,
        queue_s: float,
        clock: Clock,
    ) -> None:
        self.memory = memory
        self.ids = list(prompt)
        """Prompt and draft."""
        self.events: list[Event] = []
        self.finished = False
        self._prompt_tokens, self._cached, self._max_tokens = len(prompt), cached, max_tokens
        self._constraint, self._tokens = constraint, tokens
        self._unmeasured: list[Mask] = []
        """For each forced token at the end of `ids`: what the grammar allowed in its place."""
        self._ending: Finish | None = None
        self._text, self._stream, self._spans = "", TextStream(tokens), SpanTracker()
        self._planned = False
        self._clock, self._began, self._queue_s = clock, began, queue_s
        self._decode_began: float | None = None
        self._steps = 0
        self._force()

    @property
    def pending(self) -> list[int]:
        """Tokens that the model has to read next; the last one is left out where nothing follows it."""
        end = len(self.ids) - 1 if self._ending else len(self.ids)
        return self.ids[self.memory.length : end]

    @property
    def rows(self) -> int:
        """Distributions, of the last pending tokens, that `take` needs."""
        return len(self._unmeasured) + (0 if self._ending else 1)

    @property
    def wanted(self) -> Mask | None:
        """What may be written next; None is anything. Only meaningful while the draft has not come to its end."""
        return self._constraint.allowed() if self._constraint is not None and not self._ending else None

    def take(self, distribution: Distribution, wanted: Mask | None) -> None:
        """Measure the forced tokens, write the next one, and force what follows from it.

        Args:
            distribution: of the `rows` last pending tokens.
            wanted: what `wanted` gave before the forward pass.

        Raises:
            GrammarError: the grammar failed at this token.
        """
        self._count()
        forced = self.ids[len(self.ids) - len(self._unmeasured) :]
        measured = distribution.signals(range(len(forced)), forced, self._unmeasured)
        for token, signals in zip(forced, measured, strict=True):
            self._emit(token, signals, forced=True)
        self._unmeasured = []
        if self._ending:
            self.finish(self._ending)
            return
        position = len(forced)
        token = distribution.best(position, wanted)
        if token in self._tokens.end_ids or (self._constraint is None and token in self._tokens.special_ids):
            self.finish("stop")
            return
        (signals,) = distribution.signals([position], [token], [wanted])
        self.ids.append(token)
        self._emit(token, signals, forced=False)
        if self._constraint is not None:
            self._constraint.write(token)
        elif "\n\n" in self._text.lstrip():
            self._ending = "stop"
        self._force()
        if self._ending and not self._unmeasured:
            self.finish(self._ending)

    def finish(self, finish: Finish) -> None:
        """End the draft with what is measured; forced tokens that were not are dropped. Does nothing a second time."""
        if self.finished:
            return
        self.finished = True
        now = self._clock()
        del self.ids[len(self.ids) - len(self._unmeasured) :]
        self.events.append(
            Done(
                text=self._text,
                finish=finish,
                decode_s=0.0 if self._decode_began is None else now - self._decode_began,
                steps=self._steps,
                tokens=len(self.ids) - self._prompt_tokens,
                warnings=[] if self._constraint is None else list(self._constraint.warnings),
            )
        )

    def fail(self, code: str, message: str) -> None:
        """End the draft with a failure. Does nothing once it is finished."""
        if not self.finished:
            self.finished = True
            self.events.append(Failed(code=code, message=message))

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
                prompt_tokens=self._prompt_tokens,
                cached_tokens=self._cached,
                queue_s=self._queue_s,
                prefill_s=self._decode_began - self._began,
            )
        )

    def _force(self) -> None:
        """Write what the grammar leaves no choice about, and see whether the draft has come to its end."""
        left = self._max_tokens - (len(self.ids) - self._prompt_tokens)
        if self._constraint is not None and not self._ending:
            while forced := self._constraint.forced()[: left - len(self._unmeasured)]:
                for token in forced:
                    self._unmeasured.append(self._constraint.allowed())
                    self._constraint.write(token)
                    self.ids.append(token)
            if self._constraint.ended:
                self._ending = "stop"
        if not self._ending and left <= len(self._unmeasured):
            self._ending = "length"

    def _emit(self, token: int, signals: Signals, *, forced: bool) -> None:
        text = self._stream.feed(token)
        # A token inside a character belongs where the character will; any other character shows where that is.
        span = self._spans.feed(text or "\N{REPLACEMENT CHARACTER}")
        self._text += text
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
            )
        )
        if not self._planned and "\n" in self._text:
            self._planned = True
            try:
                kind, names = parse_plan(self._text.partition("\n")[0])
            except PatternError:  # Free text, and no plan in it: there is nothing to tell.
                return
            self.events.append(PlanMade(kind=kind, names=list(names)))
