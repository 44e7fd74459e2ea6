"""Selects the conversations kept out of training, by a hash: the same on every machine and in any order."""

from __future__ import annotations

import hashlib

VALIDATION_SHARE = 0.02
VALIDATION = "validation"


def held_out(conversation: str, share: float = VALIDATION_SHARE, salt: str = VALIDATION) -> bool:
    """True if a conversation, named `source/name`, belongs to the validation part."""
    digest = hashlib.sha256(f"{salt}\0{conversation}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64
