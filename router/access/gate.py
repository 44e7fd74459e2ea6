"""The way of a request: its key is recognised, it is let in or refused, and settled when it is over.

No request waits for the database here: keys and spending are kept in memory and read again every
`Constants.refresh_s`, so a key that was made or revoked elsewhere counts after so many seconds at the latest, the
time of a query added. While the database does not answer the last known keys stay in force; but then no answer goes
out without its row, either.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import math
import re
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import structlog

from router.access.estimate import LargeRates, estimate
from router.access.keys import KeyRing, VirtualKey, period_of, presented, window_left_s
from router.access.limits import Counters, CountersDownError, LimitStatus, LocalCounters, Reservation
from router.access.store import KeyStore, KeysUnavailableError
from router.dialects.errors import ClientError
from router.dialects.request import ChatRequest
from router.polling import poll
from router.settings import Access, Server
from router.telemetry import Metrics

_log = structlog.get_logger("access")
_LOCAL = re.compile(r"(?:localhost|127(?:\.\d{1,3}){3}|\[::1\])(?::\d{1,5})?", re.IGNORECASE)
"""Host names of this machine, with or without a port."""
_OPEN_IT = "make a key with `smallcall keys create`, or set server.allow_public"


class PublicWithoutKeysError(RuntimeError):
    """Others could reach the gateway, and it would serve whoever comes."""

    def __init__(self) -> None:
        super().__init__(
            "server.host: others could reach it, and there is no key: make one with `smallcall keys create`, or set "
            "access.admin_key (SMALLCALL_ACCESS__ADMIN_KEY) and make keys over HTTP; server.allow_public serves "
            "everybody without keys"
        )


@dataclass(slots=True)
class Grant:
    """A request that was let in by its key. Settled once; what comes later does nothing."""

    key: VirtualKey
    reserved: Reservation
    status: LimitStatus
    headers: dict[str, str]
    """Headers of the response."""
    _settle: Callable[[Grant, Reservation], None]
    begun: bool = False
    """A decision was made of the request, and settles it when it ends."""
    _settled: bool = field(default=False, init=False)

    def settle(self, true: Reservation) -> None:
        """The request is over and took this."""
        if not self._settled:
            self._settled = True
            self._settle(self, true)

    def release(self) -> None:
        """The request is over; where no decision was begun, it took nothing."""
        if not self.begun:
            self.settle(Reservation(0, 0))


class Gate:
    """Recognises, admits and settles the requests of one gateway. Belongs to one event loop.

    Args:
        rates: the large model's prices.
        refresh_s: what other replicas changed is read again after so long.
        now: UTC.
    """

    def __init__(
        self,
        settings: Access,
        server: Server,
        store: KeyStore,
        counters: Counters,
        local: LocalCounters,
        metrics: Metrics,
        *,
        rates: LargeRates,
        refresh_s: float,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.store, self.now = store, now
        self._settings, self._counters, self._local, self._metrics = settings, counters, local, metrics
        self._open = server.loopback or server.allow_public
        self._loopback, self._public = server.loopback, server.allow_public
        self._rates, self._refresh_s = rates, refresh_s
        self._ring, self._revision = KeyRing({}), -1
        self._refreshing = asyncio.Lock()
        self._warned: dict[str, str] = {}
        admin = settings.admin_key.get_secret_value() if settings.admin_key else None
        self._admin = None if admin is None else hashlib.sha256(admin.encode()).digest()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Gate]:
        """Keep keys and spending fresh until the block ends.

        Raises:
            PublicWithoutKeysError: the host is public, and there is neither a key nor an admin key.
            KeysUnavailableError: the database does not answer.
        """
        await self.refresh()
        if not (self._ring or self._open or self._admin):
            raise PublicWithoutKeysError
        polling = asyncio.create_task(
            poll("keys", self.refresh, self._refresh_s, self._metrics, (KeysUnavailableError,)),
            name="access-refresh",
        )
        try:
            yield self
        finally:
            polling.cancel()
            await asyncio.gather(polling, return_exceptions=True)

    async def refresh(self) -> None:
        """Read keys, where they have changed, and what was spent. Raises KeysUnavailableError."""
        async with self._refreshing:
            revision = await self.store.revision()
            if revision != self._revision:
                self._ring = await self.store.ring()
                self._revision = revision
            self._local.begin_refresh()
            self._local.end_refresh(await self.store.spent(self.now(), budgeted=True), self._ring.by_id)

    # ── recognised ───────────────────────────────────────────────────────────────────────────────────────────────────

    def caller(self, headers: Mapping[str, str]) -> VirtualKey | None:
        """The key that asks; None where the gateway stands open: no key was ever made, and either nobody but this
        machine can reach it, or `server.allow_public` is set. Header names are lower case.

        Raises:
            ClientError: 401; 403: without keys, a web page of another place asks.
        """
        if not self._ring and self._open:
            if not self._public:
                self._local_only(headers)
            return None
        secrets = presented(headers)
        why = "the key is not known" if secrets else "no key: send Authorization: Bearer sk-sc-…, or x-api-key"
        for secret in secrets:
            key = self._ring.find(secret)
            if key is None:
                continue
            refusal = key.refusal(self.now())
            if refusal is None:
                return key
            why = refusal
        raise self._refused(ClientError(401, why, "invalid_api_key", headers={"www-authenticate": "Bearer"}))

    def admin(self, headers: Mapping[str, str]) -> None:
        """Let only the admin key pass.

        Raises:
            ClientError: 401; 403 where none is set.
        """
        if self._admin is None:
            raise self._refused(
                ClientError(403, "access.admin_key is not set: nobody may do this", "admin_not_configured")
            )
        shown = [hashlib.sha256(secret.encode()).digest() for secret in presented(headers)]
        # All are compared, so that the time does not show which one was near.
        if not any([hmac.compare_digest(digest, self._admin) for digest in shown]):
            why = "this is not the admin key" if shown else "no key: send Authorization: Bearer, or x-api-key"
            raise self._refused(ClientError(401, why, "invalid_admin_key", headers={"www-authenticate": "Bearer"}))

    def metrics_reader(self, headers: Mapping[str, str]) -> None:
        """Metrics show what is spent: on this machine anybody may read them, elsewhere the admin key. Raises
        ClientError."""
        if not self._loopback:
            self.admin(headers)
        elif not self._public:
            self._local_only(headers)

    def _local_only(self, headers: Mapping[str, str]) -> None:
        """This machine's browser can reach the gateway, too, and runs pages of anybody: what they send bears their
        origin, or, where their own name was made to lead here, that name. Raises ClientError: 403."""
        host, origin = headers.get("host"), headers.get("origin")
        if host is not None and not _LOCAL.fullmatch(host):
            raise self._refused(ClientError(403, f"Host: not this machine's name; {_OPEN_IT}", "foreign_host"))
        if origin is not None and not _LOCAL.fullmatch(origin.partition("://")[2]):
            raise self._refused(ClientError(403, f"Origin: not of this machine; {_OPEN_IT}", "foreign_origin"))

    # ── let in ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def arrive(self, key: VirtualKey | None) -> None:
        """Count a request by the requests a minute of its key, before its body is read: one that cannot be read has
        counted, too. Raises ClientError: 429."""
        if key is None:
            return
        wait_s = self._local.arrive(key)
        if wait_s > 0:
            many = key.requests_per_minute or 1
            status = LimitStatus(
                refused="requests",
                retry_after_s=wait_s,
                requests_reset_s=wait_s + 60 * (many - 1) / many,
                period=period_of(key.window, self.now()),
            )
            raise self._refused(self._limit(key, status, _request_limit_headers(key, status)))

    async def admit(self, key: VirtualKey | None, chat: ChatRequest, *, counted_only: bool = False) -> Grant | None:
        """Let a request in and hold what it may take; None without a key. The grant is to be settled.

        Args:
            counted_only: nothing is generated: it takes one request, no tokens and no money.

        Raises:
            ClientError: 402, 403, 429; 503: Redis is down and requests are refused then, or the key has a budget and
                the large model's price is not known.
        """
        if key is None:
            return None
        if not key.allows(chat.client_model):
            raise self._refused(
                ClientError(403, "model: the key may not use this model", "model_not_allowed", param="model")
            )
        if not key.limited:
            return Grant(key, Reservation(0, 0), _UNLIMITED, {}, self._over)
        reserved = Reservation(0, 0) if counted_only else await self._estimate(key, chat)
        status = await self._taken(key, reserved)
        headers = _limit_headers(key, status)
        if status.soft:
            self._warn(key, status)
            headers["x-smallcall-budget"] = "soft_budget_spent"
        return Grant(key, reserved, status, headers, self._over)

    async def count(self, key: VirtualKey | None) -> None:
        """Count a request that asks no model, against the key's rates alone. Raises ClientError: 429, 503."""
        if key is None or not (key.requests_per_minute or key.tokens_per_minute):
            return
        self.arrive(key)
        rated, nothing = replace(key, hard_nusd=None, soft_nusd=None), Reservation(0, 0)
        status = await self._taken(rated, nothing)
        self._counters.settle(rated, nothing, nothing, status)

    async def _taken(self, key: VirtualKey, reserved: Reservation) -> LimitStatus:
        """Raises ClientError where a limit keeps the request out."""
        try:
            status = await self._counters.take(key, reserved, self.now())
        except CountersDownError as error:
            self._local.forget(key)
            failure = ClientError(503, "limits cannot be checked now", "access_unavailable", retry_after_s=1)
            raise self._refused(failure) from error
        if status.refused is not None:
            raise self._refused(self._limit(key, status, _limit_headers(key, status)))
        return status

    async def _estimate(self, key: VirtualKey, chat: ChatRequest) -> Reservation:
        costs = self._rates.costs and chat.pin != "small"
        budgeted = key.hard_nusd is not None or key.soft_nusd is not None
        rates = await self._rates.known() if costs and budgeted else None
        if costs and rates is None and key.hard_nusd is not None:
            message = "the key has a budget, and the large model's price is not known: set large.price"
            raise self._refused(ClientError(503, message, "price_unknown"))
        return estimate(chat.size_bytes, chat.body, self._settings.assumed_output_tokens, rates)

    def _limit(self, key: VirtualKey, status: LimitStatus, headers: dict[str, str]) -> ClientError:
        if status.refused == "budget":
            left_s = window_left_s(key.window, self.now())
            message = f"the key's budget for this {key.window} is spent" if left_s else "the key's budget is spent"
            return ClientError(
                402, message, "budget_spent", type_="insufficient_quota", retry_after_s=left_s and math.ceil(left_s),
                headers=headers,
            )  # fmt: skip
        many = key.requests_per_minute if status.refused == "requests" else key.tokens_per_minute
        wait_s = max(1, math.ceil(status.retry_after_s))
        message = f"more than {many} {status.refused} a minute: come again in {wait_s} s"
        return ClientError(
            429, message, "rate_limit_exceeded", type_=status.refused, retry_after_s=wait_s, headers=headers
        )

    def _warn(self, key: VirtualKey, status: LimitStatus) -> None:
        """Once for each key and window."""
        if self._warned.get(key.key_id) != status.period:
            self._warned[key.key_id] = status.period
            self._metrics.soft_budgets.inc()
            _log.warning("soft_budget_spent", key=key.key_id, window=key.window, period=status.period)

    def _refused(self, error: ClientError) -> ClientError:
        self._metrics.refusals.labels(error.code).inc()
        return error

    # ── settled ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _over(self, grant: Grant, true: Reservation) -> None:
        if grant.key.limited:
            self._counters.settle(grant.key, grant.reserved, true, grant.status)

    def visible(self, key: VirtualKey | None, names: list[str]) -> list[str]:
        """Return the gateway's models that the key may use, and the plain names that it was given."""
        if key is None:
            return names
        given = [name for name in key.models if not set(name) & set("*?[")]
        return [name for name in names if key.allows(name)] + [name for name in given if name not in names]


_UNLIMITED = LimitStatus(period="total")


def _limit_headers(key: VirtualKey, status: LimitStatus) -> dict[str, str]:
    """Rate limits in the headers that OpenAI has for them."""
    headers = _request_limit_headers(key, status)
    if key.tokens_per_minute:
        headers["x-ratelimit-limit-tokens"] = str(key.tokens_per_minute)
        headers["x-ratelimit-remaining-tokens"] = str(status.tokens_left)
        headers["x-ratelimit-reset-tokens"] = _duration(status.tokens_reset_s)
    return headers


def _request_limit_headers(key: VirtualKey, status: LimitStatus) -> dict[str, str]:
    if not key.requests_per_minute:
        return {}
    return {
        "x-ratelimit-limit-requests": str(key.requests_per_minute),
        "x-ratelimit-remaining-requests": str(status.requests_left),
        "x-ratelimit-reset-requests": _duration(status.requests_reset_s),
    }


def _duration(seconds: float) -> str:
    """As OpenAI writes it: `120ms`, `6.5s`, `2m0s`."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    if seconds < 60:
        return f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"
    return f"{int(seconds // 60)}m{int(seconds % 60)}s"
