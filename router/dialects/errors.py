"""What a client may be told is wrong, in OpenAI's shape."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


class ClientError(Exception):
    """An error that the client sees.

    Args:
        status: HTTP status.
        message: for a person; no secrets, no provider addresses.
        code: a stable word.
        param: the field of the request that is wrong.
        type_: OpenAI's class of the error; by default it follows from the status.
        retry_after_s: when to come again; told in whole seconds, never fewer.
        headers: further ones of the response.
        permanent: coming again does not help; the official clients, which would try again by themselves, are told.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        *,
        param: str | None = None,
        type_: str | None = None,
        retry_after_s: float | None = None,
        headers: Mapping[str, str] | None = None,
        permanent: bool = False,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.type = type_ or _type(status)
        self.retry_after_s, self.permanent = retry_after_s, permanent
        self.extra_headers: Mapping[str, str] = headers or {}
        """Response headers; the gateway sets those of the decision once there is one."""
        self.extras: Mapping[str, Any] | None = None
        """The `smallcall` object, where the request asked for it."""

    def body(self) -> dict[str, Any]:
        """The error object."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": error} if self.extras is None else {"error": error, "smallcall": self.extras}

    def headers(self) -> dict[str, str]:
        """Headers that go with it."""
        again = {} if self.retry_after_s is None else {"retry-after": str(max(math.ceil(self.retry_after_s), 0))}
        never = {"x-should-retry": "false"} if self.permanent else {}
        return {**self.extra_headers, **again, **never}


def _type(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"


def wrong(param: str | None, message: str) -> ClientError:
    """400: the field `param` (a path such as `tools[3].function.name`) is not what it must be."""
    return ClientError(400, f"{param}: {message}" if param else message, "invalid_request", param=param)
