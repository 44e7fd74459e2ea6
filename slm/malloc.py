"""The C library's heap, for work that takes and gives back the same large blocks again and again."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # malloc.h of glibc
_LARGEST = 2**31 - 1


def keep_pages() -> bool:
    """Keep freed memory in this process, so that the next block need not be cleared by the kernel page by page.

    Returns False where the C library is not glibc, and nothing is changed.
    """
    mallopt = _function("mallopt")
    if mallopt is None:
        return False
    wanted = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _LARGEST), (_TOP_PAD, 256 * 2**20))
    return all([bool(mallopt(option, value)) for option, value in wanted])


def give_back() -> bool:
    """Give the pages of freed memory back to the system, as after loading a model: what its weights went through on
    their way stays with the process otherwise.

    Returns False where the C library is not glibc, and nothing is changed.
    """
    trim = _function("malloc_trim")
    if trim is None:
        return False
    gc.collect()
    trim(0)
    return True


def _function(name: str) -> Callable[..., int] | None:
    """A function of glibc; None where the process runs on another C library."""
    if sys.platform != "linux":
        return None
    try:
        found: Callable[..., int] = getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError):
        return None
    return found
