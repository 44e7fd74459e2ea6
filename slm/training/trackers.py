"""Experiment trackers that a recipe may report to: whether they are installed, before hours are spent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from transformers.integrations import is_mlflow_available, is_tensorboard_available, is_wandb_available

from slm.training.recipe import Tracker

_INSTALLED: Mapping[Tracker, Callable[[], bool]] = {
    "mlflow": is_mlflow_available,
    "tensorboard": is_tensorboard_available,
    "wandb": is_wandb_available,
}


class TrackerError(ValueError):
    """A tracker that is not installed; the message names the field and says how to get it."""


def require_trackers(trackers: Sequence[Tracker]) -> None:
    """Raises TrackerError for the first that is not installed."""
    for name in trackers:
        if not _INSTALLED[name]():
            raise TrackerError(f"run.report_to: {name} is not installed: pip install 'smallcall[{name}]'")
