"""A running experiment read from the ledger and judged; and the watch that ends it when a guardrail goes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import structlog
from sqlalchemy.exc import SQLAlchemyError

from evaluation.experiments import Guardrails, Plan, State, state
from evaluation.exposures import Requests, gather
from evaluation.metrics import MetricError
from router.experiments import Assignment
from router.ledger import Ledger, LedgerUnavailableError
from router.ledger.row import NANO
from router.ledger.store import ExposedRequest
from router.settings import Experiment

_log = structlog.get_logger("experiments")
MAX_REQUESTS = 1_000_000
"""An experiment is judged by its first million requests."""


class LabelsError(ValueError):
    """A file of labels that cannot be used."""


class Label(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is known of one decision afterwards; None: not known."""

    decision_id: str
    passed: bool | None = None
    tool_error: bool | None = None


def read_labels(file: Path) -> dict[str, Label]:
    """Labels from JSON lines such as `{"decision_id": "…", "passed": true}`; of two for one decision the later holds.

    Raises:
        LabelsError: the file cannot be read, or a line is not a label; the message names the line.
    """
    decoder = msgspec.json.Decoder(Label)
    labels, number = {}, 0
    try:
        with file.open("rb") as lines:
            for line in lines:
                number += 1
                if line.strip():
                    label = decoder.decode(line)
                    labels[label.decision_id] = label
    except OSError as error:
        raise LabelsError(f"{file}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise LabelsError(f"{file}, line {number}: {error}") from error
    return labels


async def experiment_state(
    ledger: Ledger, name: str, experiment: Experiment, labels: Mapping[str, Label], now_s: float
) -> State:
    """The experiment as its rows tell it.

    Raises:
        MetricError: the rows name an arm that the configuration does not.
    """
    rows = await ledger.exposures(name, MAX_REQUESTS)
    units = gather(_requests(rows, labels), window_s=experiment.window_s, now_s=now_s)
    rails = experiment.guardrails
    plan = Plan(
        {arm_name: arm.weight for arm_name, arm in experiment.arms.items()},
        planned_units=experiment.planned_units,
        alpha=experiment.alpha,
        margin=experiment.margin,
        guardrails=Guardrails(rails.p95_latency_s, rails.invalid_calls, rails.tool_errors),
    )
    return state(units, plan)


def _requests(rows: list[ExposedRequest], labels: Mapping[str, Label]) -> Requests:
    found = [labels.get(row.decision_id) for row in rows]

    def told(values: list[bool | None]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return np.array([np.nan if value is None else float(value) for value in values], dtype=np.float64)

    sizes = np.array([(row.n_messages, row.n_tools) for row in rows], dtype=np.float64).reshape(-1, 2)
    return Requests(
        unit=np.array([row.unit_sha256 for row in rows], dtype=np.str_),
        arm=np.array([row.arm for row in rows], dtype=np.str_),
        at_s=np.array([row.created_at.timestamp() for row in rows], dtype=np.float64),
        cost_usd=np.array([_cost(row) for row in rows], dtype=np.float64),
        latency_s=np.array([row.latency_s for row in rows], dtype=np.float64),
        invalid=told([None if row.outcome is None else _invalid(row) for row in rows]),
        passed=told([label.passed if label else None for label in found]),
        tool_error=told([label.tool_error if label else None for label in found]),
        covariates=np.log1p(sizes),
    )


def _cost(row: ExposedRequest) -> float:
    if row.large_model is None:
        return 0.0
    return float("nan") if row.large_cost_nusd is None else row.large_cost_nusd / NANO


def _invalid(row: ExposedRequest) -> bool:
    return row.outcome == "unparsable" or bool(row.findings)


class Watch:
    """Looks at the experiment now and then, and stops its assignment when a guardrail has gone.

    A guardrail that went is read off the rows again by every replica and after every restart; nothing else is kept.
    """

    def __init__(self, ledger_url: str, experiment: Experiment, assignment: Assignment) -> None:
        self._url, self._experiment, self._assignment = ledger_url, experiment, assignment

    async def look(self) -> None:
        """Once. A ledger that cannot be read leaves things as they are."""
        name = self._assignment.name
        try:
            # A thread with a loop of its own: a long experiment takes seconds to add up, and requests must not wait.
            found = await asyncio.to_thread(lambda: asyncio.run(self._state()))
        except (LedgerUnavailableError, SQLAlchemyError, OSError, MetricError) as error:
            _log.error("experiment_not_read", experiment=name, error=type(error).__name__)
            return
        if found.stopped:
            gone = {f"{one.name}:{rail.name}" for one in found.treatments for rail in one.guardrails if rail.tripped_at}
            _log.warning("experiment_stopped", experiment=name, guardrails=sorted(gone))
            self._assignment.stopped = True

    async def _state(self) -> State:
        async with Ledger.open(self._url) as ledger:
            return await experiment_state(ledger, self._assignment.name, self._experiment, {}, time.time())

    async def run(self) -> None:
        """Look until it is over."""
        while not self._assignment.stopped:
            await asyncio.sleep(self._experiment.check_every_s)
            await self.look()
