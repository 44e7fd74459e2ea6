"""The C library's heap, for work that takes and gives back the same large blocks again and again."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # malloc.h of glibc
_LARGEST = 2**31 - 1


def keep_pages() -> bool:
    """Keep freed memory in this process, so that the next block need not be cleared by the kernel page by page.

    Returns False where the C library is not glibc, and nothing is changed.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    wanted = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _LARGEST), (_TOP_PAD, 256 * 2**20))
    return all([bool(mallopt(option, value)) for option, value in wanted])
