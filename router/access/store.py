"""Keys and what they have spent, in the ledger's database, so that commands, replicas and restarts agree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import structlog
from sqlalchemy import func, insert, or_, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from router.access.keys import KeyRing, NewKey, VirtualKey, minted, period_of, periods_of
from router.ledger.tables import access_keys, access_revision, access_spend

_log = structlog.get_logger("access")
MAX_KEYS = 100_000
"""That may exist, revoked ones among them: each gateway keeps all of them in memory."""


class KeysUnavailableError(RuntimeError):
    """The database cannot be asked."""


class TooManyKeysError(RuntimeError):
    """No further key may be made."""


class KeyStore:
    """On the ledger's engine. All methods raise KeysUnavailableError where the database does not answer."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def create(self, asked: NewKey, now: datetime) -> tuple[VirtualKey, str]:
        """A new key and its secret, which is shown this once. Raises TooManyKeysError."""
        key, secret = minted(asked, now)
        try:
            async with self._engine.begin() as connection:
                await _count_up(connection)
                held = (await connection.execute(select(func.count()).select_from(access_keys))).scalar_one()
                if held >= MAX_KEYS:
                    raise TooManyKeysError(f"there are {MAX_KEYS} keys already")
                await connection.execute(insert(access_keys), [_values(key)])
        except (SQLAlchemyError, OSError) as error:
            raise KeysUnavailableError(f"the key could not be written: {type(error).__name__}") from error
        return key, secret

    async def revoke(self, key_id: str, now: datetime) -> VirtualKey | None:
        """The key, revoked now or before; None: there is no such key."""
        try:
            async with self._engine.begin() as connection:
                await _count_up(connection)
                unrevoked = (access_keys.c.key_id == key_id) & access_keys.c.revoked_at.is_(None)
                await connection.execute(update(access_keys).where(unrevoked).values(revoked_at=now))
                found = (await connection.execute(select(access_keys).where(access_keys.c.key_id == key_id))).first()
        except (SQLAlchemyError, OSError) as error:
            raise KeysUnavailableError(f"the key could not be revoked: {type(error).__name__}") from error
        return None if found is None else _key(found._asdict())

    async def revision(self) -> int:
        """Grows with every change of the keys."""
        try:
            async with self._engine.connect() as connection:
                return int((await connection.execute(select(access_revision.c.revision))).scalar_one())
        except (SQLAlchemyError, OSError) as error:
            raise KeysUnavailableError(f"the keys cannot be read: {type(error).__name__}") from error

    async def ring(self) -> KeyRing:
        """All keys, in the order in which they were made; one whose row is not as we write it opens nothing."""
        try:
            async with self._engine.connect() as connection:
                query = select(access_keys).order_by(access_keys.c.created_at, access_keys.c.key_id)
                found = (await connection.execute(query)).all()
        except (SQLAlchemyError, OSError) as error:
            raise KeysUnavailableError(f"the keys cannot be read: {type(error).__name__}") from error
        keys: dict[str, VirtualKey] = {}
        for row in found:
            try:
                keys[row.key_id] = _key(row._asdict())
            except (TypeError, ValueError) as error:
                _log.error("key_unreadable", key=row.key_id, error=type(error).__name__)
        if found and not keys:  # no keys at all would open the gateway
            raise KeysUnavailableError("none of the keys can be read")
        return KeyRing(keys)

    async def spent(self, now: datetime, *, budgeted: bool = False) -> Mapping[str, Mapping[str, int]]:
        """Nano-dollars by key id and period, of the periods that `now` lies in; `budgeted`: of keys with a budget
        only."""
        query = select(access_spend).where(access_spend.c.period.in_(periods_of(now)))
        if budgeted:
            query = query.join(access_keys, access_keys.c.key_id == access_spend.c.key_id).where(
                or_(access_keys.c.hard_nusd.is_not(None), access_keys.c.soft_nusd.is_not(None))
            )
        try:
            async with self._engine.connect() as connection:
                found = (await connection.execute(query)).all()
        except (SQLAlchemyError, OSError) as error:
            raise KeysUnavailableError(f"what was spent cannot be read: {type(error).__name__}") from error
        sums: dict[str, dict[str, int]] = {}
        for row in found:
            sums.setdefault(row.key_id, {})[row.period] = int(row.spent_nusd)
        return sums


def spent_by(key: VirtualKey, sums: Mapping[str, Mapping[str, int]], now: datetime) -> int:
    """Nano-dollars that the key has spent in its own current window."""
    return sums.get(key.key_id, {}).get(period_of(key.window, now), 0)


async def _count_up(connection: AsyncConnection) -> None:
    """First in its transaction: whoever changes keys waits here for others that do, so revisions are committed in their
    order, and a reader of revision n has seen all changes up to n."""
    counted = access_revision.c.revision + 1
    await connection.execute(update(access_revision).values(revision=counted))


def _values(key: VirtualKey) -> dict[str, Any]:
    return {**asdict(key), "digest": key.digest.hex(), "models": list(key.models)}


def _key(values: dict[str, Any]) -> VirtualKey:
    for name in ("created_at", "expires_at", "revoked_at"):
        if values[name] is not None and values[name].tzinfo is None:  # SQLite forgets the zone; it is UTC
            values[name] = values[name].replace(tzinfo=UTC)
    values["digest"], values["models"] = bytes.fromhex(values["digest"]), tuple(values["models"])
    return VirtualKey(**values)
