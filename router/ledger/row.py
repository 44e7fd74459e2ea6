"""One decision as it is kept. Units stand in the names; money is in whole nano-dollars, so that sums are exact."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

NANO = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionRow:
    """What was decided about one request, why, and what it cost. Prompts only where the caller stores `content`."""

    decision_id: str
    created_at: datetime
    """UTC, with its time zone."""
    dialect: str
    client_model: str
    """The model name that the client asked for."""
    side: Literal["small", "large", "none"]
    """Whose words the client got; `none` where it got an error."""
    reason: str
    stage: str
    policy: str
    score: float | None = None
    threshold: float | None = None
    propensity: float = 1.0
    """Probability of the chosen action at decision time; 1 for a deterministic policy."""
    outcome: str | None = None
    """Of the draft: calls, no_call, ask, unparsable; None where nothing was drafted."""
    n_tools: int = 0
    n_messages: int = 0
    streamed: bool = False
    status: int = 200
    error_code: str | None = None
    client_disconnected: bool = False
    key_id: str | None = None
    """The virtual key that asked; None where there are none yet."""
    tenant: str | None = None
    """Of that key."""
    charged_nusd: int | None = None
    """What was taken from the key's budgets; None without a key."""
    large_model: str | None = None
    large_prompt_tokens: int | None = None
    large_completion_tokens: int | None = None
    large_cached_tokens: int | None = None
    large_cost_nusd: int | None = None
    """None: nothing was asked of the large model, or its price is not known."""
    small_model: str | None = None
    small_prompt_tokens: int | None = None
    small_cached_tokens: int | None = None
    small_completion_tokens: int | None = None
    small_steps: int | None = None
    small_queue_s: float | None = None
    small_prefill_s: float | None = None
    small_decode_s: float | None = None
    latency_s: float = 0.0
    request_sha256: str = ""
    tools_sha256: str = ""
    weights_sha256: str | None = None
    adapter_sha256: str | None = None
    pattern_version: str | None = None
    findings: tuple[str, ...] = ()
    content: dict[str, Any] | None = None
    experiment: str | None = None
    """Of the configuration; None where none touched the request."""
    arm: str | None = None
    arm_propensity: float | None = None
    """Probability of the arm when it was drawn."""
    unit_sha256: str | None = None
    """Digest of the salted unit (conversation or key) that the arm was drawn for."""
    tool: str | None = None
    """The first one that the answer calls; None where it calls none."""
    request_bytes: int | None = None
    """Of the body as it came."""
    large_attempts: int | None = None
    """How often the large model was asked, retries counted; 0: its circuit was open. None: it was not to be asked."""
    large_estimate_nusd: int | None = None
    """Beyond `large_cost_nusd`, what an answer that was cut short must have cost; None where usage was told in full."""
    small_cost_nusd: int | None = None
    """The draft's seconds at `small.usd_per_hour`; None where no draft was asked for."""
    large_input_usd_per_mtok: float | None = None
    """The large model's price where the small one answered in its place; None where it is not known."""
    large_cached_input_usd_per_mtok: float | None = None
    large_output_usd_per_mtok: float | None = None
    audit_propensity: float | None = None
    """Probability with which the large model was asked behind the small answer; None where it could not be."""
    bundle_sha256: str | None = None
    """Digest of the bundle that judged."""
    certificate: str | None = None
    """Id of the certificate in force for this decision; None where none was."""
    probability: float | None = None
    """Calibrated, that the draft is right; None where the judge gives none."""

    def __post_init__(self) -> None:
        if self.created_at.tzinfo is None:
            raise ValueError("created_at needs a time zone")


@dataclass(frozen=True, slots=True)
class LargeCall:
    """One call of the large model's answer, by the provider's own id."""

    call_id: str
    tool: str


def nano_usd(usd: float | None) -> int | None:
    """Dollars to whole nano-dollars; None stays None."""
    return None if usd is None else round(usd * NANO)
