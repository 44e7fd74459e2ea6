"""The parts of a running gateway in one typed container, and the ASGI application that carries it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from router.access.gate import Gate
from router.cascade.gateway import Gateway
from router.ledger.store import Ledger
from router.outcomes.watch import OutcomeWatch
from router.selection.active_policies import PoliciesInForce
from router.selection.running_experiments import LiveExperiments
from router.selection.stickiness import Stickiness
from router.small.worker_client import SmallModel
from router.upstream.large_model import LargeModel
from router.upstream.token_counter import TokenCounter


@dataclass(slots=True)
class Services:
    """Whatever requests are answered with. Made by the lifespan, which closes what lives when it ends."""

    gate: Gate
    gateway: Gateway
    ledger: Ledger
    policies: PoliciesInForce
    experiments: LiveExperiments
    stickiness: Stickiness
    outcomes: OutcomeWatch
    small: SmallModel | None
    large: LargeModel | None
    counter: TokenCounter | None
    """Counts the large model's tokens; None where there is none, or it stands in for litellm."""
    started: int
    """Unix seconds."""


class GatewayApp(FastAPI):
    """The application. Requests for completions do not go through its routing, which takes longer than all else that
    the gateway does with a body that is forwarded.

    Args:
        completions: the endpoint of each path that is answered with a completion.
        options: FastAPI's own.
    """

    def __init__(self, completions: Mapping[str, ASGIApp], **options: Any) -> None:
        super().__init__(**options)
        self._completions = completions
        self._services: Services | None = None

    @property
    def services(self) -> Services:
        """The parts of the gateway. Raises RuntimeError before the lifespan has made them."""
        if self._services is None:
            raise RuntimeError("the gateway is not running")
        return self._services

    @services.setter
    def services(self, made: Services) -> None:
        self._services = made

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Implements the ASGI call: completions directly, all else by FastAPI's routing."""
        if scope["type"] == "http" and scope["method"] == "POST":
            completion = self._completions.get(scope["path"])
            if completion is not None:
                scope["app"] = self
                await completion(scope, receive, send)
                return
        await super().__call__(scope, receive, send)


def services_of(scope: Scope) -> Services:
    """The parts of the gateway that a request has come to."""
    app: GatewayApp = scope["app"]
    return app.services
