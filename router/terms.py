"""What is settled about a request before it is decided."""

from __future__ import annotations

from dataclasses import dataclass

from router.access.door import Grant
from router.experiments import Exposure
from router.stickiness import Sticky


@dataclass(frozen=True, slots=True)
class Terms:
    """None each: no experiment took it in, there are no keys, its conversation is not remembered."""

    exposure: Exposure | None = None
    grant: Grant | None = None
    sticky: Sticky | None = None


NO_TERMS = Terms()
