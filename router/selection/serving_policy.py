"""A policy as the gateway serves it: the judge's own methods, and what a row, a client or an operator asks of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from policies.rules.judge import Contribution
from policies.rules.price_aware import BudgetController
from policies.types import Draft, Policy, Request, Verdict


class ServingPolicy(Policy, Protocol):
    """A judge of drafts in service."""

    @property
    def digest(self) -> str | None:
        """SHA-256 of the bundle that judges; None where the policy is no bundle."""

    @property
    def controller(self) -> BudgetController | None:
        """The budget that large answers are charged to; None where the policy keeps none."""

    def explain(self, request: Request, draft: Draft) -> Sequence[Contribution] | None:
        """The signals that spoke most in a judgement of the draft; None where the policy cannot tell."""

    def log_state(self) -> None:
        """Write to the log how the policy's certificates stand, where that is new."""

    def view(self) -> dict[str, Any]:
        """The policy as the list of models shows it: `kind`, `name`, `state`, and a bundle's own fields."""


@dataclass(frozen=True, slots=True)
class PlainPolicy:
    """A policy without a bundle, in service: it has no certificate, no budget and no explanation.

    Args:
        inner: judges.
        kind: its word in the configuration.
    """

    inner: Policy
    kind: str

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def digest(self) -> str | None:
        return None

    @property
    def controller(self) -> BudgetController | None:
        return None

    def before(self, request: Request) -> Verdict:
        return self.inner.before(request)

    def during(self, request: Request, draft: Draft) -> Verdict:
        return self.inner.during(request, draft)

    def after(self, request: Request, draft: Draft) -> Verdict:
        return self.inner.after(request, draft)

    def explain(self, request: Request, draft: Draft) -> Sequence[Contribution] | None:
        return None

    def log_state(self) -> None:
        """There is nothing to tell."""

    def view(self) -> dict[str, Any]:
        return {"kind": self.kind, "name": self.name, "state": "uncertified"}
