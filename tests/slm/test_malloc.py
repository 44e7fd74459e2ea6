"""What the C library's heap is told, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc's heap")

_FAULTS = """
import resource, sys
import torch
from slm.malloc import keep_pages
assert sys.argv[1] == "leave" or keep_pages()
for turn in range(24):
    began = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = torch.ones(16 * 2**20)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - began
    del block
print(faults)
"""
_RESIDENT = """
from slm.malloc import give_back
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
blocks = [bytes([1]) * 65536 for _ in range(2000)]
kept = blocks.pop()
del blocks
before = resident()
assert give_back()
print(before - resident())
"""


def _told(script: str, *arguments: str) -> int:
    run = subprocess.run([sys.executable, "-c", script, *arguments], check=True, capture_output=True, text=True)
    return int(run.stdout)


def test_memory_that_is_kept_is_not_asked_of_the_kernel_again() -> None:
    """In the end a block of 64 MiB takes next to no page faults; without it, one for each page of 4 KiB."""
    assert _told(_FAULTS, "keep") < 100 < 1000 < _told(_FAULTS, "leave")


def test_freed_memory_is_given_back() -> None:
    """131 MB of small blocks below one that is still used."""
    assert _told(_RESIDENT) > 100e6
