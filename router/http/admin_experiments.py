"""`/admin/experiments`: experiments listed, made and stopped while the gateway serves, with the admin key always."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator, Sequence

import orjson
from fastapi import Request, Response
from pydantic import ValidationError

from router.constants import removal_hint
from router.dialects.errors import ClientError, wrong
from router.dialects.parsing import decoded
from router.http.admin_keys import Endpoint, guarded
from router.http.services import services_of
from router.selection.experiment_store import ExperimentConflictError
from router.settings import NAME_PATTERN, Experiment, SettingsError


def experiment_routes(body: Callable[[Request], Awaitable[bytes]]) -> Iterator[tuple[str, str, Endpoint]]:
    """Path, method and endpoint of each; `body` reads a request's bytes within bounds."""

    async def listed(request: Request) -> Response:
        experiments = services_of(request.scope).experiments
        return _json({"object": "list", "data": await experiments.to_public_dicts()})

    async def put(request: Request) -> Response:
        experiments = services_of(request.scope).experiments
        name = request.path_params["name"]
        if not re.fullmatch(NAME_PATTERN, name):
            raise wrong("name", "must be 1 to 64 lower-case letters, digits, `_`, `.`, `-`, a letter or digit first")
        experiment = _experiment(await body(request))
        try:
            shown, new = await experiments.put(name, experiment)
        except ExperimentConflictError as error:
            raise ClientError(409, str(error), error.code) from error
        except SettingsError as error:
            raise wrong("arms", str(error)) from error
        return _json(shown, 201 if new else 200)

    async def stop(request: Request) -> Response:
        experiments = services_of(request.scope).experiments
        shown = await experiments.stop(request.path_params["name"])
        if shown is None:
            raise ClientError(404, "there is no such experiment", "unknown_experiment")
        return _json(shown)

    yield "/admin/experiments", "GET", guarded(listed)
    yield "/admin/experiments/{name}", "PUT", guarded(put)
    yield "/admin/experiments/{name}", "DELETE", guarded(stop)


def _experiment(raw: bytes) -> Experiment:
    """Raises ClientError that names the first field that is wrong."""
    fields = decoded(raw)
    try:
        return Experiment.model_validate(fields)
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False, include_context=False)[0]
        hint = removal_hint(("experiments", "*", *found["loc"]))
        raise wrong(*_problem(found["loc"], hint or found["msg"].removeprefix("Value error, "))) from None


def _problem(path: Sequence[int | str], message: str) -> tuple[str, str]:
    """The field and what is wrong with it; validators of ours begin their message with the field, from their own
    section on."""
    places = list(map(str, path))
    field, _, rest = message.partition(": ")
    if places and rest and field.split(".")[0] == places[-1]:
        return ".".join([*places[:-1], field]), rest
    return ".".join(places), message


def _json(value: object, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status, media_type="application/json")
