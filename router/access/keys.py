"""A virtual key: minted once, kept as a digest, bound to what it may do.

A key is 256 random bits, so plain SHA-256 keeps it as well as a slow hash would (docs/decisions/0006): there is nothing
to guess, and a request is checked in a microsecond.
"""

from __future__ import annotations

import fnmatch
import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal, Self

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from router.ledger.row import NANO

PREFIX = "sk-sc-"
_LENGTH = len(PREFIX) + 43
"""32 bytes in unpadded URL-safe base 64 are 43 characters."""
_ID_BYTES = 10
Window = Literal["day", "month", "total"]
"""The window of a budget: a UTC day, a UTC calendar month, or the key's whole life."""
_Text = StringConstraints(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f]*$")
_Glob = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]*$")]
MAX_USD = 1_000_000.0
"""Largest budget: nano-dollars must stay exact where Redis counts them, in doubles."""


class KeyFieldsError(ValueError):
    """A new key's fields cannot be accepted; `param` names the field."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(f"{param}: {message}" if param else message)
        self.param = param


class NewKey(BaseModel):
    """The fields of a new key, over HTTP and on the command line alike."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, _Text]
    tenant: Annotated[str, _Text] | None = None
    """Whose it is; several keys may share one."""
    expires_at: AwareDatetime | None = None
    hard_usd: float | None = Field(default=None, gt=0, le=MAX_USD)
    """Where this is spent, requests are refused."""
    soft_usd: float | None = Field(default=None, gt=0, le=MAX_USD)
    """Where this is spent, answers say so, and so does the log."""
    window: Window = "month"
    requests_per_minute: int | None = Field(default=None, ge=1, le=10_000_000)
    tokens_per_minute: int | None = Field(default=None, ge=1, le=1_000_000_000)
    models: list[_Glob] = Field(default=[], max_length=64)
    """Globs of the model names that a request may bear; empty: any."""

    @field_validator("expires_at")
    @classmethod
    def _to_come(cls, value: datetime | None) -> datetime | None:
        if value is not None and value <= datetime.now(UTC):
            raise ValueError("lies in the past")
        return value

    @model_validator(mode="after")
    def _soft_first(self) -> Self:
        if self.hard_usd is not None and self.soft_usd is not None and self.soft_usd > self.hard_usd:
            raise ValueError("soft_usd: is more than hard_usd")
        return self


def new_key(fields: Mapping[str, object]) -> NewKey:
    """Read and check what is asked of a new key. Raises KeyFieldsError for the first field that is wrong."""
    try:
        return NewKey.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        message = first["msg"].removeprefix("Value error, ")
        raise KeyFieldsError(".".join(map(str, first["loc"])), message) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualKey:
    """A key as it is kept. The secret itself is not."""

    key_id: str
    digest: bytes
    """SHA-256 of the secret."""
    hint: str
    """The secret's last four characters, for people."""
    name: str
    tenant: str | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    hard_nusd: int | None
    soft_nusd: int | None
    window: Window
    requests_per_minute: int | None
    tokens_per_minute: int | None
    models: tuple[str, ...]

    def refusal(self, now: datetime) -> str | None:
        """Why the key opens nothing any more, or None."""
        if self.revoked_at is not None:
            return "the key was revoked"
        if self.expires_at is not None and self.expires_at <= now:
            return "the key has expired"
        return None

    def allows(self, model: str) -> bool:
        """Return True if a request may bear this model name."""
        return not self.models or any(fnmatch.fnmatchcase(model, glob) for glob in self.models)

    @property
    def limited(self) -> bool:
        """True if there is anything to count."""
        return not (
            self.hard_nusd is None
            and self.soft_nusd is None
            and self.requests_per_minute is None
            and self.tokens_per_minute is None
        )

    def to_public_dict(self, spent_nusd: int | None = None) -> dict[str, object]:
        """The key as people are shown it: without secret and digest; `spent_usd` of the current window."""

        def usd(nusd: int | None) -> float | None:
            return None if nusd is None else nusd / NANO

        def at(time: datetime | None) -> str | None:
            return None if time is None else time.isoformat()

        return {
            "id": self.key_id,
            "hint": f"…{self.hint}",
            "name": self.name,
            "tenant": self.tenant,
            "created_at": at(self.created_at),
            "expires_at": at(self.expires_at),
            "revoked_at": at(self.revoked_at),
            "hard_usd": usd(self.hard_nusd),
            "soft_usd": usd(self.soft_nusd),
            "window": self.window,
            "spent_usd": usd(spent_nusd),
            "requests_per_minute": self.requests_per_minute,
            "tokens_per_minute": self.tokens_per_minute,
            "models": list(self.models),
        }


def minted(asked: NewKey, now: datetime) -> tuple[VirtualKey, str]:
    """A new key, and its secret, which nobody can show again."""
    secret = PREFIX + secrets.token_urlsafe(32)
    key = VirtualKey(
        key_id="key_" + secrets.token_hex(_ID_BYTES),
        digest=digest_of(secret),
        hint=secret[-4:],
        name=asked.name,
        tenant=asked.tenant,
        created_at=now,
        expires_at=asked.expires_at,
        revoked_at=None,
        hard_nusd=_nano(asked.hard_usd),
        soft_nusd=_nano(asked.soft_usd),
        window=asked.window,
        requests_per_minute=asked.requests_per_minute,
        tokens_per_minute=asked.tokens_per_minute,
        models=tuple(asked.models),
    )
    return key, secret


def _nano(usd: float | None) -> int | None:
    return None if usd is None else max(round(usd * NANO), 1)


def digest_of(secret: str) -> bytes:
    """Return the SHA-256 of a secret, which is all that is kept of it."""
    return hashlib.sha256(secret.encode()).digest()


def presented(headers: Mapping[str, str]) -> list[str]:
    """The secrets that a request shows, at most two: `Authorization: Bearer`, `x-api-key`. Header names are lower
    case."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    shown = [token.strip()] if scheme.lower() == "bearer" else []
    return [secret for secret in (*shown, headers.get("x-api-key", "").strip()) if secret]


class KeyRing:
    """All keys, by digest. Immutable; a changed list makes a new one."""

    def __init__(self, keys: Mapping[str, VirtualKey]) -> None:
        """`keys` by their id, revoked and expired ones among them."""
        self.by_id = keys
        self._by_digest = {key.digest: key for key in keys.values()}

    def __bool__(self) -> bool:
        return bool(self.by_id)

    def find(self, secret: str) -> VirtualKey | None:
        """The key of a secret. The look-up's time gives away a SHA-256 at most, from which no secret follows; the
        digests are compared in constant time."""
        if len(secret) != _LENGTH or not secret.startswith(PREFIX):
            return None
        digest = digest_of(secret)
        key = self._by_digest.get(digest)
        return key if key is not None and hmac.compare_digest(key.digest, digest) else None


def period_of(window: Window, now: datetime) -> str:
    """The name of the window that `now` lies in: `2026-11-25`, `2026-11`, `total`."""
    if window == "total":
        return "total"
    return now.strftime("%Y-%m-%d" if window == "day" else "%Y-%m")


def periods_of(now: datetime) -> tuple[str, str, str]:
    """All windows that spending at `now` counts in."""
    return period_of("day", now), period_of("month", now), "total"


def window_left_s(window: Window, now: datetime) -> float | None:
    """Seconds until the window is over; None: never."""
    if window == "total":
        return None
    start = now.replace(hour=0, minute=0, second=0, microsecond=0)
    month_end = (start.replace(day=1) + timedelta(days=32)).replace(day=1)
    end = start + timedelta(days=1) if window == "day" else month_end
    return (end - now).total_seconds()


_SPAN = re.compile(r"^(\d{1,6})([mhd])$")
_UNITS = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1)}


def expiry(text: str, now: datetime) -> datetime:
    """When a key expires: `30d`, `12h`, `90m` from now, or an ISO time with its zone. Raises KeyFieldsError."""
    found = _SPAN.match(text)
    try:
        if found is not None:
            return now + int(found[1]) * _UNITS[found[2]]
        at = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise KeyFieldsError("expires", "must be such as 30d, 12h, 90m or 2027-01-31T00:00:00Z") from None
    if at.tzinfo is None:
        raise KeyFieldsError("expires", "an ISO time needs its zone, such as Z")
    return at
