"""The policies in force: made from the configuration, with bundles loaded; the gateway's own is swapped whole.

Each request keeps the policy that it began with. Arms of an experiment keep theirs until the gateway ends, and while an
experiment runs the gateway's own, which is its control, is not swapped either.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from policies.bundle.bundle import BundleError, load
from policies.rules.baselines import make_policy
from policies.rules.price_aware import BudgetController
from router.selection.served_bundle import Running, ServedBundle
from router.selection.serving_policy import PlainPolicy, ServingPolicy
from router.settings import BundlePolicy, Settings, SettingsError

_log = structlog.get_logger("judge")


class PoliciesInForce:
    """Owned by one gateway.

    Args:
        running: what the gateway runs.
        clock: seconds, monotonic; of budgets.

    Raises:
        SettingsError: a bundle cannot be loaded.
    """

    def __init__(self, settings: Settings, running: Running, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings, self._running, self._clock = settings, running, clock
        self._of_arms: list[ServingPolicy] = []
        self.own = self.tried(settings.policy)
        """The gateway's own policy."""

    def made(self, config: Mapping[str, Any]) -> ServingPolicy:
        """The policy of an arm's `policy` section.

        Raises:
            SettingsError: the bundle cannot be loaded.
        """
        made = self.tried(config)
        self._of_arms.append(made)
        return made

    def tried(self, config: Mapping[str, Any]) -> ServingPolicy:
        """As `made`, but nothing is kept of it. Raises SettingsError."""
        if config.get("kind") != "bundle":
            return PlainPolicy(make_policy(config), str(config["kind"]))
        return self._bundle(BundlePolicy.model_validate(config), None)

    def log_states(self) -> None:
        """Log how all certificates stand, where that is new. At the start, and when a worker is ready."""
        for policy in (self.own, *self._of_arms):
            policy.log_state()

    async def reload(self, *, held: bool) -> bool:
        """Load the gateway's own bundle anew, from the same path; whether it is in force now.

        A bundle that cannot be loaded leaves the old one in force. A budget goes on with what was spent.

        Args:
            held: an experiment runs.
        """
        if self._settings.policy.get("kind") != "bundle":
            _log.warning("policy_not_reloaded", reason="the policy is no bundle")
            return False
        if held:
            _log.warning("policy_not_reloaded", reason="an experiment runs, and this is its control")
            return False
        config = BundlePolicy.model_validate(self._settings.policy)
        try:
            made = await asyncio.to_thread(self._bundle, config, self.own.controller)
        except SettingsError as error:
            _log.error("policy_not_reloaded", reason=str(error))
            return False
        self.own = made
        _log.info("policy_reloaded", bundle=made.bundle.digest, certificates=made.status.state)
        return True

    def view(self) -> dict[str, Any]:
        """The description in the list of models of the gateway's own policy."""
        return self.own.view()

    def _bundle(self, config: BundlePolicy, old: BudgetController | None) -> ServedBundle:
        kept: list[BudgetController] = []

        def controller(usd_per_hour: float, usd_a_request: float) -> BudgetController:
            budget = config.usd_per_hour or usd_per_hour
            made = BudgetController(budget, usd_a_request, self._clock)
            if old is not None:
                made.go_on_from(old)
            kept.append(made)
            return made

        try:
            bundle = load(config.folder, config.digest)
            policy = bundle.policy(controller)
        except BundleError as error:
            raise SettingsError(f"policy.path: {error}") from error
        if config.usd_per_hour is not None and not kept:
            raise SettingsError("policy.usd_per_hour: the bundle's policy is not of kind budget")
        return ServedBundle(bundle, policy, kept[0] if kept else None, config.on_void, self._running)
