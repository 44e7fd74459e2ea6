"""The experiment that runs now: of the configuration or made over HTTP, begun and ended while the gateway serves.

Every replica reads the database each `Constants.refresh_s`, so that what was begun or stopped elsewhere counts after
so long at the latest. Which arm a unit gets depends on the definition alone: replicas and restarts agree.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import structlog

from router.constants import Constants
from router.ledger.store import LedgerUnavailableError
from router.polling import poll
from router.selection.active_policies import PoliciesInForce
from router.selection.assignment import Assignment
from router.selection.experiment_store import ExperimentStore, StoredExperiment, running
from router.settings import Experiment, Settings, SettingsError
from router.telemetry import Metrics

_log = structlog.get_logger("experiments")


class LiveExperiments:
    """Belongs to one event loop."""

    def __init__(
        self,
        settings: Settings,
        policies: PoliciesInForce,
        store: ExperimentStore,
        metrics: Metrics,
        constants: Constants,
    ) -> None:
        self._configured, self._policies, self._store = settings.experiments, policies, store
        self._metrics, self._ledger_url, self._constants = metrics, settings.ledger.url, constants
        self.assignment: Assignment | None = None
        """Assignment of the experiment that runs; one that a guardrail has ended says so itself."""
        self._current: tuple[str, Experiment] | None = None
        self._revision = -1
        self._watching: asyncio.Task[None] | None = None
        self._refreshing = asyncio.Lock()

    @property
    def running(self) -> bool:
        """True if requests are taken in."""
        return self.assignment is not None and not self.assignment.stopped

    @contextlib.asynccontextmanager
    async def in_force(self) -> AsyncIterator[LiveExperiments]:
        """Heed the database until the block ends; what rows say of guardrails is heeded from the start.

        Raises:
            LedgerUnavailableError: the database does not answer.
            SettingsError: a bundle of a configured experiment cannot be loaded.
        """
        await self.refresh()
        foreseen = (LedgerUnavailableError, SettingsError)
        polling = asyncio.create_task(
            poll("experiments", self.refresh, self._constants.refresh_s, self._metrics, foreseen),
            name="experiments-refresh",
        )
        try:
            yield self
        finally:
            tasks = [task for task in (polling, self._watching) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def refresh(self) -> None:
        """Let run what is to run. Raises LedgerUnavailableError, SettingsError."""
        async with self._refreshing:
            revision = await self._store.revision()
            if revision == self._revision:
                return
            held = await self._store.all()
            name = running(self._configured, held)
            wanted: tuple[str, Experiment] | None = None
            if name is not None:
                experiment = self._configured.get(name) or held[name].experiment
                assert experiment is not None
                wanted = name, experiment
            if wanted != self._current:
                await self._switch(wanted)
            self._revision = revision

    async def put(self, name: str, experiment: Experiment) -> tuple[dict[str, Any], bool]:
        """Keep an experiment, and begin it where it is enabled: how clients see it, and whether it is new.

        Raises:
            ExperimentConflictError: see `ExperimentStore.put`.
            SettingsError: a bundle cannot be loaded; nothing is kept.
            LedgerUnavailableError: the database does not answer.
        """
        await asyncio.to_thread(Assignment, name, experiment, self._policies.tried)
        stored, new = await self._store.put(name, experiment, self._configured, datetime.now(UTC))
        await self.refresh()
        return self._to_public_dict(name, stored), new

    async def stop(self, name: str) -> dict[str, Any] | None:
        """End an experiment for good; None: there is no such. Raises LedgerUnavailableError."""
        stored = await self._store.stop(name, self._configured, datetime.now(UTC))
        if stored is None:
            return None
        await self.refresh()
        return self._to_public_dict(name, stored)

    async def to_public_dicts(self) -> list[dict[str, Any]]:
        """All experiments as the admin route shows them, the configured ones first. Raises LedgerUnavailableError."""
        held = await self._store.all()
        return [self._to_public_dict(name, held.get(name)) for name in dict.fromkeys([*self._configured, *held])]

    def _to_public_dict(self, name: str, stored: StoredExperiment | None) -> dict[str, Any]:
        configured = self._configured.get(name)
        experiment = configured or (stored.experiment if stored is not None else None)
        return {
            "name": name,
            "source": "api" if configured is None else "configuration",
            "state": self._state(name, experiment, stored),
            "created_at": stored.created_at.isoformat() if stored is not None and configured is None else None,
            "stopped_at": stored.stopped_at.isoformat() if stored is not None and stored.stopped_at else None,
            "experiment": None if experiment is None else experiment.model_dump(mode="json"),
        }

    def _state(self, name: str, experiment: Experiment | None, stored: StoredExperiment | None) -> str:
        if stored is not None and stored.stopped_at is not None:
            return "guardrail" if stored.stopped_by == "guardrail" else "stopped"
        if experiment is None:
            return "unreadable"
        if self._current is not None and self._current[0] == name and self.assignment is not None:
            return "guardrail" if self.assignment.stopped else "running"
        return "waiting" if experiment.enabled else "disabled"

    async def _switch(self, wanted: tuple[str, Experiment] | None) -> None:
        """Raises SettingsError; then nothing runs."""
        if self._watching is not None:
            self._watching.cancel()
        self.assignment, self._current, self._watching = None, None, None
        if wanted is None:
            _log.info("experiment_ended")
            return
        name, experiment = wanted
        made = await asyncio.to_thread(Assignment, name, experiment, self._policies.made)
        self._policies.log_states()
        watch = await asyncio.to_thread(_watch, self._ledger_url, experiment, made, self._constants)
        await watch.refresh()
        self.assignment, self._current = made, wanted
        self._watching = asyncio.create_task(watch.run(), name="experiment-watch")
        _log.info("experiment_begun", experiment=name)


def _watch(ledger_url: str, experiment: Experiment, made: Assignment, constants: Constants) -> Any:
    from router.selection.experiment_watch import (
        Watch,  # brings scipy, which a gateway without experiments does not need
    )

    return Watch(ledger_url, experiment, made, constants)
