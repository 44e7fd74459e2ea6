"""`/admin/keys`: keys made, listed and revoked over HTTP, with the admin key always."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterator

import orjson
from fastapi import Request, Response

from router.access.gate import Gate
from router.access.keys import KeyFieldsError, new_key
from router.access.store import KeysUnavailableError, TooManyKeysError, spent_by
from router.dialects.chat_completions import ChatCompletions
from router.dialects.errors import ClientError, wrong
from router.dialects.parsing import decoded
from router.http.services import services_of
from router.ledger.store import LedgerUnavailableError

ADMIN_BODY_BYTES = 64 * 1024
PAGE = 1000
"""Keys that are shown at once, at most."""
_CHAT = ChatCompletions()

Endpoint = Callable[[Request], Awaitable[Response]]


def key_routes(body: Callable[[Request], Awaitable[bytes]]) -> Iterator[tuple[str, str, Endpoint]]:
    """Path, method and endpoint of each; `body` reads a request's bytes within bounds."""

    async def create(request: Request) -> Response:
        gate = services_of(request.scope).gate
        fields = decoded(await body(request))
        try:
            key, secret = await gate.store.create(new_key(fields), gate.now())
        except KeyFieldsError as error:
            raise wrong(error.param or None, str(error).removeprefix(f"{error.param}: ")) from error
        except TooManyKeysError as error:
            raise ClientError(409, str(error), "too_many_keys") from error
        await _refresh(gate)
        return _json({**key.to_public_dict(0), "key": secret}, 201)

    async def listed(request: Request) -> Response:
        gate = services_of(request.scope).gate
        limit, after = _page(request)
        ring, now = await gate.store.ring(), gate.now()
        keys = list(ring.by_id.values())
        first = next((i + 1 for i, key in enumerate(keys) if key.key_id == after), 0)
        shown, sums = keys[first : first + limit], await gate.store.spent(now)
        data = [key.to_public_dict(spent_by(key, sums, now)) for key in shown]
        return _json({"object": "list", "data": data, "has_more": first + limit < len(keys)})

    async def revoke(request: Request) -> Response:
        gate = services_of(request.scope).gate
        key = await gate.store.revoke(request.path_params["key_id"], gate.now())
        if key is None:
            raise ClientError(404, "there is no such key", "unknown_key")
        await _refresh(gate)
        return _json(key.to_public_dict())

    yield "/admin/keys", "POST", guarded(create)
    yield "/admin/keys", "GET", guarded(listed)
    yield "/admin/keys/{key_id}", "DELETE", guarded(revoke)


async def _refresh(gate: Gate) -> None:
    """Heed the change at once. It is committed, so where the database has gone since, it is heeded later."""
    with contextlib.suppress(KeysUnavailableError):
        await gate.refresh()


def _page(request: Request) -> tuple[int, str]:
    """Return the number of keys to show, and the id they follow. Raises ClientError."""
    limit = request.query_params.get("limit", str(PAGE))
    if not limit.isdecimal() or not 1 <= int(limit[:9]) <= PAGE:
        raise wrong("limit", f"must be a whole number from 1 to {PAGE}")
    return int(limit), request.query_params.get("after", "")


def guarded(endpoint: Endpoint) -> Endpoint:
    """The endpoint behind the admin key; a ClientError becomes its response, in OpenAI's shape."""

    async def behind(request: Request) -> Response:
        gate = services_of(request.scope).gate
        try:
            gate.admin(request.headers)
            return await endpoint(request)
        except (KeysUnavailableError, LedgerUnavailableError) as error:
            return _error(ClientError(503, str(error), "ledger_unavailable"))
        except ClientError as error:
            return _error(error)

    return behind


def _error(error: ClientError) -> Response:
    headers = {"content-type": "application/json", **error.headers()}
    return Response(orjson.dumps(_CHAT.error(error)), error.status, headers=headers)


def _json(value: object, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status, media_type="application/json")
