"""Reads what a gateway says it drafts with: a trace keeps it, because a certificate holds for nothing else."""

from __future__ import annotations

import aiohttp
import msgspec

from policies.bundle.manifest import MadeFor

MAX_BYTES = 4 * 1024 * 1024
TIMEOUT_S = 10.0


class Serving(msgspec.Struct, frozen=True, kw_only=True):
    """The hashes of a gateway's small side, as its `/v1/models` reports them."""

    weights_sha256: str
    adapter_sha256: str | None
    pattern_version: str
    dtype: str
    grammar: bool

    def made_for(self, large_model: str | None, tools: dict[str, str] | None = None) -> MadeFor:
        """As a bundle keeps it."""
        return MadeFor(
            weights_sha256=self.weights_sha256,
            adapter_sha256=self.adapter_sha256,
            pattern_version=self.pattern_version,
            dtype=self.dtype,
            grammar=self.grammar,
            large_model=large_model,
            tools=tools,
        )


class _Ours(msgspec.Struct):
    small: Serving | None = None


class _Models(msgspec.Struct):
    smallcall: _Ours | None = None


async def serving_of(session: aiohttp.ClientSession, base_url: str, api_key: str | None) -> Serving | None:
    """Return what an endpoint drafts with; None where it does not say: no gateway of ours, or without a small side."""
    headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
    try:
        async with session.get(
            base_url.rstrip("/") + "/models",
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
            allow_redirects=False,
        ) as response:
            raw = bytearray()
            async for piece in response.content.iter_any():
                raw += piece
                if len(raw) > MAX_BYTES:
                    return None
        models = msgspec.json.decode(raw, type=_Models) if response.status == 200 else _Models()
    except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError):
        return None
    return models.smallcall.small if models.smallcall is not None else None
