"""llama.cpp's own server by xllamacpp: to be run by the Python that has it.

python llamacpp_wheel.py MODEL PORT THREADS SLOTS CONTEXT
"""

from __future__ import annotations

import signal
import sys

import xllamacpp


def main() -> None:
    """Serve until a signal."""
    model, port, threads, slots, context = sys.argv[1:]
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.port = int(port)
    params.n_parallel = int(slots)
    params.n_ctx = int(slots) * int(context)
    params.kv_unified = False
    params.ui = False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(threads)
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
