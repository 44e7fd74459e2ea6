"""A running experiment read from the ledger and judged; and the watch that ends it when a guardrail goes."""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
import structlog

from evaluation.experiments.units import Requests, gather
from evaluation.experiments.verdict import ExperimentPlan, Guardrails, State, state
from router.constants import Constants
from router.ledger.outcomes import Known, OutcomeLabel, known, of_decisions
from router.ledger.row import NANO
from router.ledger.store import ExposedRequest, Ledger
from router.selection.assignment import Assignment
from router.selection.experiment_store import ExperimentStore
from router.settings import Experiment
from router.telemetry import where

_log = structlog.get_logger("experiments")
MAX_REQUESTS = 1_000_000
"""An experiment is judged by its first million requests, or hardly more."""
_REST = 20.0
"""A look that took a second is followed by at least twenty of rest."""


class LabelsError(ValueError):
    """A file of labels that cannot be used."""


class Label(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The later outcome of one decision; None: not known. A file's word goes before the ledger's outcomes."""

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
    ledger: Ledger, name: str, experiment: Experiment, labels: Mapping[str, Label], now_s: float, window_s: float
) -> State:
    """The experiment as its rows show it.

    Args:
        now_s: Unix seconds.
        window_s: how long a unit's requests count from its first one.

    Raises:
        MetricError: the rows name an arm that the configuration does not.
    """
    columns = _Columns(labels)
    rows = await ledger.exposures(name)
    while rows and len(columns.at_s) < MAX_REQUESTS:
        outcomes = await _known(ledger, rows)
        for row in rows:
            columns.add(row, outcomes.get(row.decision_id))
        rows = await ledger.exposures(name, after=rows[-1].decision_id)
    units = gather(columns.requests(), window_s=window_s, now_s=now_s)
    rails = experiment.guardrails
    plan = ExperimentPlan(
        {arm_name: arm.weight for arm_name, arm in experiment.arms.items()},
        planned_units=experiment.planned_units,
        alpha=experiment.alpha,
        margin=experiment.margin,
        guardrails=Guardrails(rails.p95_latency_s, rails.invalid_calls, rails.tool_errors),
    )
    return state(units, plan)


async def _known(ledger: Ledger, rows: Sequence[ExposedRequest]) -> dict[str, Known]:
    """Return what the ledger knows of these decisions: feedback, and what their tools answered."""
    found: dict[str, list[OutcomeLabel]] = {}
    for one in await of_decisions(ledger.engine, rows[0].decision_id, rows[-1].decision_id):
        found.setdefault(one.decision_id, []).append(one)
    return {decision_id: known(outcomes) for decision_id, outcomes in found.items()}


class _Columns:
    """Requests packed as they are read: about 90 bytes each."""

    def __init__(self, labels: Mapping[str, Label]) -> None:
        self._labels, self._arms = labels, dict[str, int]()
        self._unit, self._arm, self._sizes = array("Q"), array("H"), array("I")
        self.at_s, self._cost_usd, self._latency_s = array("d"), array("d"), array("d")
        self._invalid, self._passed, self._tool_error = array("d"), array("d"), array("d")

    def add(self, row: ExposedRequest, outcome: Known | None) -> None:
        label: Label | Known | None = self._labels.get(row.decision_id, outcome)
        # 64 bits of a digest: two of a million units fall together once in 37 million experiments.
        self._unit.append(int(row.unit_sha256[:16], 16))
        self._arm.append(self._arms.setdefault(row.arm, len(self._arms)))
        self._sizes.extend((row.n_messages, row.n_tools))
        self.at_s.append(row.created_at.timestamp())
        self._cost_usd.append(_cost(row))
        self._latency_s.append(row.latency_s)
        self._invalid.append(
            _number(None if row.outcome is None else row.outcome == "unparsable" or bool(row.findings))
        )
        self._passed.append(_number(label.passed if label else None))
        self._tool_error.append(_number(label.tool_error if label else None))

    def requests(self) -> Requests:
        names = np.array(list(self._arms) or [""], dtype=np.str_)
        return Requests(
            unit=np.array(self._unit),
            arm=names[np.array(self._arm, dtype=np.intp)],
            at_s=np.array(self.at_s),
            cost_usd=np.array(self._cost_usd),
            latency_s=np.array(self._latency_s),
            invalid=np.array(self._invalid),
            passed=np.array(self._passed),
            tool_error=np.array(self._tool_error),
            covariates=np.log1p(np.array(self._sizes, dtype=np.float64)).reshape(-1, 2),
        )


def _number(known: bool | None) -> float:
    return float("nan") if known is None else float(known)


def _cost(row: ExposedRequest) -> float:
    """USD of draft, answer (what was estimated of one that was cut short included) and audit; NaN where the large model
    answered and nothing is known of its cost. Tries that gave no answer cost nothing."""
    asked = row.side == "large" and row.large_model is not None and row.large_attempts != 0
    if asked and row.large_cost_nusd is None and row.large_estimate_nusd is None:
        return float("nan")
    parts = row.large_cost_nusd, row.large_estimate_nusd, row.small_cost_nusd, row.audit_cost_nusd
    return sum(part or 0 for part in parts) / NANO


class Watch:
    """Looks at the experiment now and then, and stops it for good when a guardrail has gone: its assignment at once,
    and in the database, for other replicas, restarts, and when the rows that showed it are gone."""

    def __init__(self, ledger_url: str, experiment: Experiment, assignment: Assignment, constants: Constants) -> None:
        self._url, self._experiment, self._assignment = ledger_url, experiment, assignment
        self._constants = constants
        self._kept = False

    async def refresh(self) -> None:
        """Once. A ledger that cannot be read leaves things as they are."""
        name = self._assignment.name
        try:
            # A thread with a loop of its own: a long experiment takes seconds to add up, and requests must not wait.
            found = await asyncio.to_thread(lambda: asyncio.run(self._state()))
        except Exception as error:  # noqa: BLE001 - whatever it is, the watch goes on
            _log.error("experiment_not_read", experiment=name, where=where(error))
            return
        if found.stopped:
            gone = {f"{one.name}:{rail.name}" for one in found.treatments for rail in one.guardrails if rail.tripped_at}
            _log.warning("experiment_stopped", experiment=name, guardrails=sorted(gone))

    async def _state(self) -> State:
        name, experiment = self._assignment.name, self._experiment
        async with Ledger.open(self._url) as ledger:
            window_s = self._constants.experiment_window_s
            found = await experiment_state(ledger, name, experiment, {}, time.time(), window_s)
            if found.stopped:
                self._assignment.stopped = True
                store = ExperimentStore(ledger.engine)
                await store.stop(name, {name: experiment}, datetime.now(UTC), by="guardrail")
                self._kept = True
            return found

    async def run(self) -> None:
        """Look until it is over, and that is kept."""
        pause_s = self._constants.experiment_check_s
        while not self._kept:
            await asyncio.sleep(pause_s)
            began = time.monotonic()
            await self.refresh()
            pause_s = max(self._constants.experiment_check_s, _REST * (time.monotonic() - began))
