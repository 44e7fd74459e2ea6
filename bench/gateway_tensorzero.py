"""TensorZero's embedded gateway as a server; run by the Python of its own environment: CONFIG FILE_FOR_ITS_URL."""

from __future__ import annotations

import asyncio
import pathlib
import sys

import tensorzero.tensorzero as native  # type: ignore[import-not-found]


async def _main(config: str, url_file: pathlib.Path) -> None:
    gateway = await native._start_http_gateway(
        config_file=config, clickhouse_url=None, postgres_url=None, valkey_url=None, async_setup=True
    )
    await asyncio.to_thread(url_file.write_text, gateway.base_url)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], pathlib.Path(sys.argv[2])))
