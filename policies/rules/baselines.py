"""The policies that ours must beat, of those that need no training, and the registry of all by name.

The oracle needs to know who is right, so it is no live policy: `evaluation.replay.replay` draws it from labelled
tables. The mean-log-probability threshold is `ValidAndSure` with `score="mean_logprob"`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from policies.rules.single import ValidAndSure, before_draft, judge_validity
from policies.types import Action, Draft, Policy, Request, Stage, Verdict


@dataclass(frozen=True, slots=True)
class LargeOnly:
    """Never draft."""

    @property
    def name(self) -> str:
        return "large_only"

    def before(self, request: Request) -> Verdict:
        return Verdict(Action.ESCALATE, Stage.BEFORE, "large_only")

    def during(self, request: Request, draft: Draft) -> Verdict:
        return Verdict(Action.ESCALATE, Stage.DURING, "large_only")

    def after(self, request: Request, draft: Draft) -> Verdict:
        return Verdict(Action.ESCALATE, Stage.AFTER, "large_only")


@dataclass(frozen=True, slots=True)
class SmallOnly:
    """Serve every draft, right or wrong, as long as there is something to serve."""

    @property
    def name(self) -> str:
        return "small_only"

    def before(self, request: Request) -> Verdict:
        return before_draft(request)

    def during(self, request: Request, draft: Draft) -> Verdict:
        return Verdict(Action.CONTINUE, Stage.DURING, "drafting")

    def after(self, request: Request, draft: Draft) -> Verdict:
        refused = judge_validity(request, draft, "answer", "answer")
        return refused or Verdict(Action.ANSWER, Stage.AFTER, "small_only")


@dataclass(frozen=True, slots=True)
class SchemaValidOnly:
    """Serve every draft of calls that is well formed: form alone, no confidence."""

    @property
    def name(self) -> str:
        return "schema_valid_only"

    def before(self, request: Request) -> Verdict:
        return before_draft(request)

    def during(self, request: Request, draft: Draft) -> Verdict:
        return Verdict(Action.CONTINUE, Stage.DURING, "drafting")

    def after(self, request: Request, draft: Draft) -> Verdict:
        refused = judge_validity(request, draft, "escalate", "escalate")
        return refused or Verdict(Action.ANSWER, Stage.AFTER, "accepted")


@dataclass(frozen=True, slots=True)
class RandomMix:
    """Escalate a share of all requests by a hash of the request, so that a replay decides as the gateway did."""

    share: float
    """Share escalated, in [0, 1]."""
    salt: str = ""

    def __post_init__(self) -> None:
        if not 0.0 <= self.share <= 1.0:
            raise ValueError(f"share: {self.share} is not in [0, 1]")

    @property
    def name(self) -> str:
        return f"random_mix={self.share:g}"

    def before(self, request: Request) -> Verdict:
        drafted = before_draft(request)
        if drafted.action is Action.ESCALATE:
            return drafted
        digest = hashlib.sha256(f"{self.salt}{request.messages!r}".encode()).digest()
        if int.from_bytes(digest[:8], "big") / 2**64 < self.share:
            return Verdict(Action.ESCALATE, Stage.BEFORE, "random_mix", propensity=self.share)
        return Verdict(Action.CONTINUE, Stage.BEFORE, "drafting")

    def during(self, request: Request, draft: Draft) -> Verdict:
        return Verdict(Action.CONTINUE, Stage.DURING, "drafting")

    def after(self, request: Request, draft: Draft) -> Verdict:
        refused = judge_validity(request, draft, "answer", "answer")
        return replace(refused or Verdict(Action.ANSWER, Stage.AFTER, "random_mix"), propensity=1.0 - self.share)


KINDS: Mapping[str, Callable[..., Policy]] = {
    "threshold": ValidAndSure,
    "schema_valid_only": SchemaValidOnly,
    "small_only": SmallOnly,
    "large_only": LargeOnly,
    "random_mix": RandomMix,
}


def make_policy(config: Mapping[str, Any]) -> Policy:
    """The policy of a configuration such as `{"kind": "threshold", "threshold": 0.5}`.

    Raises:
        ValueError: the message names the field that is missing, unknown or out of range.
    """
    kind = config.get("kind")
    made = KINDS.get(kind) if isinstance(kind, str) else None
    if made is None:
        raise ValueError(f"policy.kind: {kind!r} is none of {', '.join(KINDS)}, bundle")
    settings = {key: value for key, value in config.items() if key != "kind"}
    known = {field.name for field in fields(made)}  # type: ignore[arg-type]
    for key in settings:
        if key not in known:
            raise ValueError(f"policy.{key}: unknown; {kind} takes {', '.join(sorted(known)) or 'nothing'}")
    try:
        return made(**settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"policy.{error}") from error
