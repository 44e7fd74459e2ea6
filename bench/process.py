"""What a process of ours costs, read from /proc: CPU seconds and memory. Linux only."""

from __future__ import annotations

from pathlib import Path


def cpu_s(pid: int) -> float:
    """CPU seconds of all its living threads, to the nanosecond; a thread that ended takes its share with it."""
    spent = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        spent += int((task / "schedstat").read_text().split()[0])
    return spent / 1e9


def peak_bytes(pid: int) -> int:
    """The most memory that it held so far."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"process {pid} has no memory")
