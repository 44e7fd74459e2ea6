"""A circuit breaker: after failures in a row nothing is asked for a while, then one request tries."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from router.upstream.large_model import UpstreamError, UpstreamTimeout, UpstreamUnavailable


class Breaker:
    """Belongs to one event loop.

    Args:
        failures: so many in a row open it.
        cooldown_s: how long it stays open.
        clock: seconds, monotonic.
    """

    def __init__(self, failures: int, cooldown_s: float, clock: Callable[[], float]) -> None:
        self._limit, self._cooldown_s, self._clock = failures, cooldown_s, clock
        self._failed = 0
        self._opened: float | None = None
        self._probing = False

    @contextlib.contextmanager
    def attempt(self) -> Iterator[None]:
        """One request inside. Time-outs and unavailability count; any answer, a refusal too, closes the circuit.

        Raises:
            UpstreamUnavailable: the circuit is open; the block does not run.
        """
        probe = self._admit()
        try:
            yield
        except (UpstreamTimeout, UpstreamUnavailable):
            self._failed += 1
            if probe or self._failed >= self._limit:
                self._opened = self._clock()
            raise
        except UpstreamError:
            self._close()
            raise
        else:
            self._close()
        finally:
            if probe:
                self._probing = False

    def _admit(self) -> bool:
        """Whether this attempt is the one that tries an open circuit."""
        if self._opened is None:
            return False
        left = self._opened + self._cooldown_s - self._clock()
        if left > 0 or self._probing:
            message = "the large model failed repeatedly and is not asked for a moment"
            raise UpstreamUnavailable(503, "upstream_circuit_open", message, retry_after_s=max(left, 1.0))
        self._probing = True
        return True

    def _close(self) -> None:
        self._failed, self._opened = 0, None
