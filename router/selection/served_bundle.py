"""A bundle in service: its policy, and whether what it was made for is what the gateway runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import structlog

from policies.bundle.bundle import Bundle, differences
from policies.rules.judge import Contribution
from policies.rules.price_aware import BudgetController
from policies.texts import tool_sha256
from policies.types import Action, Draft, Policy, Request, Stage, Verdict
from slm.protocol import Info

_log = structlog.get_logger("judge")
OnVoid = Literal["escalate", "warn"]
State = Literal["in_force", "void", "uncertified", "waiting"]
MAX_NAME = 128
"""Longest name of a policy in the ledger, in characters."""


@dataclass(frozen=True, slots=True)
class Running:
    """The models that the gateway runs, as far as its configuration says."""

    loaded: Callable[[], Info | None]
    """Returns the worker's description of itself; None while none is ready."""
    large_model: str | None


@dataclass(frozen=True, slots=True)
class CertificateStatus:
    """The state of a bundle's certificates."""

    state: State
    """`uncertified`: the bundle has none. `waiting`: the worker has not said yet what it is."""
    differences: tuple[str, ...] = ()
    """The fields that are not what the bundle was made for."""


class ServedBundle:
    """A `ServingPolicy`: the bundle's while its status is good, and what `on_void` says while it is not."""

    def __init__(
        self,
        bundle: Bundle,
        policy: Policy,
        controller: BudgetController | None,
        on_void: OnVoid,
        running: Running,
    ) -> None:
        self.bundle, self.controller = bundle, controller
        self._policy, self._on_void, self._running = policy, on_void, running
        self._known: tuple[Info | None, CertificateStatus] | None = None
        made_for = bundle.manifest.made_for
        self._tools = made_for.tools if made_for is not None else None

    @property
    def name(self) -> str:
        return f"bundle {self.bundle.digest[:12]}: {self._policy.name}"[:MAX_NAME]

    @property
    def digest(self) -> str:
        """SHA-256 of the bundle."""
        return self.bundle.digest

    @property
    def status(self) -> CertificateStatus:
        """The state of the certificates now; a change is logged."""
        info = self._running.loaded()
        if self._known is None or self._known[0] is not info:
            found = self._judged(info)
            if self._known is None or self._known[1] != found:
                self._log_status(found)
            self._known = (info, found)
        return self._known[1]

    def before(self, request: Request) -> Verdict:
        if self.status.state == "void" and self._on_void == "escalate":
            return Verdict(Action.ESCALATE, Stage.BEFORE, "certificate_void")
        return self._covered(self._policy.before(request))

    def during(self, request: Request, draft: Draft) -> Verdict:
        return self._covered(self._policy.during(request, draft))

    def after(self, request: Request, draft: Draft) -> Verdict:
        verdict = self._covered(self._policy.after(request, draft))
        if verdict.action is Action.ANSWER and not self._tools_known(request, draft):
            verdict = replace(verdict, certificate=None)
            if self._on_void == "escalate":
                return replace(verdict, action=Action.ESCALATE, reason="tool_not_certified")
        return verdict

    def explain(self, request: Request, draft: Draft) -> Sequence[Contribution]:
        """The judge's three loudest signals."""
        return self.bundle.judge.explain(request, draft)

    def log_state(self) -> None:
        """Write to the log how the certificates stand, where that is new."""
        _ = self.status

    def view(self) -> dict[str, Any]:
        """The bundle as the list of models shows it."""
        status = self.status
        return {
            "kind": "bundle",
            "name": self.name,
            "state": status.state,
            "differences": list(status.differences),
            "on_void": self._on_void,
            **self.bundle.summary(),
        }

    def _covered(self, verdict: Verdict) -> Verdict:
        if verdict.certificate is None or self.status.state == "in_force":
            return verdict
        return replace(verdict, certificate=None)

    def _tools_known(self, request: Request, draft: Draft) -> bool:
        """Return True if each tool that is called was there, and the same, when the classes were certified."""
        if self._tools is None:
            return True
        by_name = {tool.name: tool for tool in request.tools}
        called = {call.name for call in draft.calls}
        known = self._tools.keys() & by_name.keys()
        return all(name in known and self._tools[name] == tool_sha256(by_name[name]) for name in called)

    def _judged(self, info: Info | None) -> CertificateStatus:
        manifest, running = self.bundle.manifest, self._running
        if manifest.made_for is None:
            return CertificateStatus("uncertified")
        if info is None:
            return CertificateStatus("waiting")
        found = differences(manifest.made_for, info, grammar=True, large_model=running.large_model)
        if found:
            return CertificateStatus("void", found)
        return CertificateStatus("in_force" if manifest.certificates else "uncertified")

    def _log_status(self, status: CertificateStatus) -> None:
        digest, certificates = self.bundle.digest, self.bundle.manifest.certificates
        if status.state == "void":
            _log.warning("certificates_void", bundle=digest, differences=status.differences, on_void=self._on_void)
        elif status.state == "in_force":
            says = [f"{shown.id}: {shown.sentence()}" for shown in certificates]
            _log.info("certificates_in_force", bundle=digest, certificates=says)
        else:
            _log.info("certificates_" + status.state, bundle=digest)
