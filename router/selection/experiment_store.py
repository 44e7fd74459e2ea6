"""Experiments that were made over HTTP or stopped, in the ledger's database, so that replicas and restarts agree.

What is kept of a configured experiment is only that it was stopped. An experiment that has served requests is not
changed, and one that was stopped does not begin again: a changed one gets a new name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from pydantic import ValidationError
from sqlalchemy import Row, delete, insert, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from router.ledger.store import LedgerUnavailableError, zoned
from router.ledger.tables import decisions, experiment_revision, live_experiments, rollups
from router.settings import Experiment

StoppedBy = Literal["admin", "guardrail"]


class ExperimentConflictError(RuntimeError):
    """The experiment cannot be put as it is; `code` is a stable word."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class StoredExperiment:
    """One row."""

    name: str
    experiment: Experiment | None
    """None: it stands in the configuration, and was stopped; or this version of the gateway cannot read it."""
    created_at: datetime
    stopped_at: datetime | None = None
    stopped_by: StoppedBy | None = None
    """None: nobody, or it was not kept."""


class ExperimentStore:
    """On the ledger's engine. All methods raise LedgerUnavailableError where the database does not answer."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def revision(self) -> int:
        """Grows with every change."""
        try:
            async with self._engine.connect() as connection:
                return int((await connection.execute(select(experiment_revision.c.revision))).scalar_one())
        except (SQLAlchemyError, OSError) as error:
            raise _unavailable("read", error) from error

    async def all(self) -> dict[str, StoredExperiment]:
        """By name, in the order in which they were made."""
        try:
            async with self._engine.connect() as connection:
                return await _all(connection)
        except (SQLAlchemyError, OSError) as error:
            raise _unavailable("read", error) from error

    async def put(
        self, name: str, experiment: Experiment, configured: Mapping[str, Experiment], now: datetime
    ) -> tuple[StoredExperiment, bool]:
        """Keep an experiment; also whether it is new.

        Args:
            configured: experiments of the configuration.

        Raises:
            ExperimentConflictError: it has served requests and differs, was stopped, is one of the configuration, or
                another one runs.
        """
        try:
            async with self._engine.begin() as connection:
                await _count_up(connection)
                held = await _all(connection)
                old = held.get(name)
                _check(name, experiment, configured, held)
                if (old is None or old.experiment != experiment) and await _served(connection, name):
                    message = f"{name} has served requests: give the changed experiment a new name"
                    raise ExperimentConflictError("experiment_begun", message)
                created_at = now if old is None else old.created_at
                values = {"definition": experiment.model_dump_json(), "created_at": created_at}
                await connection.execute(delete(live_experiments).where(live_experiments.c.name == name))
                await connection.execute(insert(live_experiments).values(name=name, **values))
        except (SQLAlchemyError, OSError) as error:
            raise _unavailable("written", error) from error
        return StoredExperiment(name, experiment, created_at), old is None

    async def stop(
        self, name: str, configured: Mapping[str, Experiment], now: datetime, by: StoppedBy = "admin"
    ) -> StoredExperiment | None:
        """The experiment, stopped now or before; None: there is no such."""
        try:
            async with self._engine.begin() as connection:
                await _count_up(connection)
                if name in configured and name not in await _all(connection):
                    await connection.execute(insert(live_experiments).values(name=name, created_at=now))
                running = (live_experiments.c.name == name) & live_experiments.c.stopped_at.is_(None)
                await connection.execute(update(live_experiments).where(running).values(stopped_at=now, stopped_by=by))
                return (await _all(connection)).get(name)
        except (SQLAlchemyError, OSError) as error:
            raise _unavailable("stopped", error) from error


def running(configured: Mapping[str, Experiment], held: Mapping[str, StoredExperiment]) -> str | None:
    """The name of the one that is to run. What was begun over HTTP goes before what the configuration enables."""
    for name, one in held.items():
        if one.experiment is not None and one.experiment.enabled and one.stopped_at is None and name not in configured:
            return name
    return next((name for name, one in configured.items() if one.enabled and name not in held), None)


def _check(
    name: str, experiment: Experiment, configured: Mapping[str, Experiment], held: Mapping[str, StoredExperiment]
) -> None:
    if name in configured:
        message = f"{name} stands in the configuration, and is changed there"
        raise ExperimentConflictError("experiment_configured", message)
    old = held.get(name)
    if old is not None and old.stopped_at is not None:
        message = f"{name} was stopped: give the new experiment another name"
        raise ExperimentConflictError("experiment_stopped", message)
    other = running(configured, {key: one for key, one in held.items() if key != name})
    if experiment.enabled and other is not None:
        message = f"{other} is running, and a request has one policy: stop it first"
        raise ExperimentConflictError("experiment_running", message)


async def _count_up(connection: AsyncConnection) -> None:
    """First in its transaction: whoever changes experiments waits here for others that do."""
    counted = experiment_revision.c.revision + 1
    await connection.execute(update(experiment_revision).values(revision=counted))


async def _all(connection: AsyncConnection) -> dict[str, StoredExperiment]:
    query = select(live_experiments).order_by(live_experiments.c.created_at, live_experiments.c.name)
    return {row.name: _stored(row) for row in (await connection.execute(query)).all()}


def _stored(row: Row[tuple[object, ...]]) -> StoredExperiment:
    experiment = None
    if row.definition is not None:
        try:
            experiment = Experiment.model_validate_json(row.definition)
        except ValidationError:  # of another version of the gateway
            experiment = None
    stopped_at = None if row.stopped_at is None else zoned(row.stopped_at)
    return StoredExperiment(row.name, experiment, zoned(row.created_at), stopped_at, row.stopped_by)


async def _served(connection: AsyncConnection, name: str) -> bool:
    for table in (decisions, rollups):
        query = select(table.c.experiment).where(table.c.experiment == name).limit(1)
        if (await connection.execute(query)).first() is not None:
            return True
    return False


def _unavailable(what: str, error: Exception) -> LedgerUnavailableError:
    return LedgerUnavailableError(f"the experiments cannot be {what}: {type(error).__name__}")
