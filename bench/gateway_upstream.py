"""An upstream that answers at once: `python -m bench.gateway_upstream PORT`. No HTTP library, so that it costs little.

Every POST gets the one tool call of `gateway_traffic`, streamed where the body asks for it (all events in one write);
every GET gets what a model server would say of its one model, for gateways that look after their upstream.
"""

from __future__ import annotations

import asyncio
import gc
import re
import sys
from typing import ClassVar, cast

import uvloop

from bench.gateway_traffic import streamed_answer, whole_answer

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_ABOUT = (
    b'{"object": "list", "data": [{"id": "gpt-4o", "object": "model", "owned_by": "bench"}], "model_path": "gpt-4o", '
    b'"served_model_name": "gpt-4o", "tokenizer_path": "", "is_generation": true}'
)
_STREAM = re.compile(rb'"stream": *true')


def _response(kind: bytes, body: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: " + kind + b"\r\ncontent-length: " + str(len(body)).encode()
    return head + b"\r\n\r\n" + body


def _chunked(events: list[bytes]) -> bytes:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in events) + b"0\r\n\r\n"


class Upstream(asyncio.Protocol):
    """One connection."""

    whole: ClassVar[bytes] = _response(b"application/json", whole_answer())
    streamed: ClassVar[bytes] = _chunked(streamed_answer())
    other: ClassVar[bytes] = _response(b"application/json", _ABOUT)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Implements `asyncio.Protocol`."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop has its own class
        self._buffer = b""

    def data_received(self, data: bytes) -> None:
        """Implements `asyncio.Protocol`."""
        self._buffer += data
        while True:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self._buffer[: end + 2]
            found = _LENGTH.search(head)
            if found is None and b"chunked" in head:
                if not self._buffer.endswith(b"0\r\n\r\n"):
                    return
                body, self._buffer = self._buffer[end + 4 :], b""
            else:
                over = end + 4 + (int(found.group(1)) if found else 0)
                if len(self._buffer) < over:
                    return
                body, self._buffer = self._buffer[end + 4 : over], self._buffer[over:]
            if not head.startswith(b"POST"):
                self._transport.write(self.other)
            else:
                self._transport.write(self.streamed if _STREAM.search(body) else self.whole)


async def _main(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", port, backlog=1024)
    gc.freeze()
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_main(int(sys.argv[1])))
