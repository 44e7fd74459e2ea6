"""How many tokens a Messages request has for the large model: its provider's own count, else litellm's estimate."""

from __future__ import annotations

from router.dialects.errors import ClientError
from router.dialects.request import ChatRequest
from router.upstream.passthrough import Passthrough
from router.upstream.translated import LitellmModel

MAX_ESTIMATED_BYTES = 4 * 1024 * 1024
"""Of a body whose tokens are estimated here: more than a million tokens of text."""


class TokenCounter:
    """Counts with one large model."""

    def __init__(self, translated: LitellmModel, forwarder: Passthrough) -> None:
        self._translated, self._forwarder = translated, forwarder

    async def count(self, chat: ChatRequest) -> tuple[int, bool]:
        """The tokens of the request, and whether that is an estimate. Raises UpstreamError, ClientError."""
        if self._forwarder.speaks("messages"):
            return await self._forwarder.count_tokens(chat), False
        if chat.size_bytes > MAX_ESTIMATED_BYTES:
            message = f"the body is larger than {MAX_ESTIMATED_BYTES} bytes, too much for an estimate"
            raise ClientError(413, message, "body_too_large")
        return await self._translated.count_tokens(chat.body), True
