"""Which arm of an experiment a request belongs to. A pure function of the configuration and the request.

SHA-256(the experiment's name ‖ NUL ‖ unit) falls into an arm's share of [0, 1): the same in every replica and after
every restart, with nothing kept. The digest is what the ledger keeps of the unit; no key and no prompt can be read from
it.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from policies.rules.baselines import make_policy
from router.dialects.request import ChatRequest
from router.dialects.small_side_limits import OF_EARLIER_TURNS
from router.selection.conversation import asker_of, conversation_of
from router.selection.serving_policy import PlainPolicy, ServingPolicy
from router.settings import Experiment


@dataclass(frozen=True, slots=True)
class Exposure:
    """That a request was served under an experiment."""

    experiment: str
    arm: str
    unit_sha256: str
    propensity: float
    """The arm's share of all weights."""
    policy: ServingPolicy | None
    """None: the gateway's own."""


def plain_policy(config: Mapping[str, Any]) -> ServingPolicy:
    """The policy of an arm's `policy` section that is no bundle. Raises ValueError."""
    return PlainPolicy(make_policy(config), str(config["kind"]))


class Assignment:
    """Assigns requests to the arms of one experiment."""

    def __init__(
        self, name: str, experiment: Experiment, make: Callable[[Mapping[str, Any]], ServingPolicy] = plain_policy
    ) -> None:
        """`make`: the policy of an arm's configuration."""
        self.name = name
        self.stopped = False
        """Set when a guardrail has gone: from then on nothing is assigned."""
        self._unit, self._named = experiment.unit, name.encode()
        total = sum(arm.weight for arm in experiment.arms.values())
        self._arms = [
            (arm_name, arm.weight / total, make(arm.policy) if arm.policy is not None else None)
            for arm_name, arm in experiment.arms.items()
        ]
        self._ends = list(accumulate(share for _, share, _ in self._arms))

    def exposure(self, chat: ChatRequest, headers: Mapping[str, str], key_id: str | None = None) -> Exposure | None:
        """The request's arm; None where the experiment does not touch it: no policy is asked about it (pinned, or for
        the large model only), it shows no key and the unit is the key, or the experiment was stopped.

        What goes large because of its earlier turns is taken in: left out, an arm would show by the conversations
        that its own answers did not send there.

        Args:
            headers: of the request, names in lower case.
            key_id: of the virtual key that asks; None without keys.
        """
        large_only = chat.large_only is not None and chat.large_only.reason not in OF_EARLIER_TURNS
        if self.stopped or chat.pin is not None or large_only:
            return None
        unit = self._unit_of(chat, headers, key_id)
        if unit is None:
            return None
        digest = hashlib.sha256(self._named + b"\0" + unit)
        place = int.from_bytes(digest.digest()[:8], "big") / 2**64
        arm, share, policy = self._arms[min(bisect_right(self._ends, place), len(self._arms) - 1)]
        return Exposure(self.name, arm, digest.hexdigest(), share, policy)

    def _unit_of(self, chat: ChatRequest, headers: Mapping[str, str], key_id: str | None) -> bytes | None:
        if self._unit == "key":
            asker = asker_of(headers, key_id)
            return None if asker is None else asker.encode()
        return conversation_of(chat, headers, key_id)
