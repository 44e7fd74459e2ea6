"""The ledger's tables; `migrations/` makes them, and a test holds the two together."""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Boolean, Column, Date, DateTime, Float, Integer, MetaData, String, Table, Text

REVISION = "0007_stopped_by"
"""The last migration: a database that has it is not migrated."""

metadata = MetaData()

COUNTED = (
    "requests",
    "failed",
    "unpriced",
    "estimated",
    "large_prompt_tokens",
    "large_cached_tokens",
    "large_completion_tokens",
    "small_prompt_tokens",
    "small_completion_tokens",
)
"""What roll-ups count; see `evaluation.live.costs.CostLine`."""
NANO_USD = ("large_nusd", "large_estimate_nusd", "small_nusd", "audit_nusd", "always_large_nusd")
"""What they sum, in nano-dollars."""

decisions = Table(
    "decisions",
    metadata,
    Column("decision_id", String(64), primary_key=True),
    Column("created_at", DateTime(timezone=True), nullable=False, index=True),
    Column("dialect", String(32), nullable=False),
    Column("client_model", String(256), nullable=False),
    Column("side", String(8), nullable=False),
    Column("reason", String(64), nullable=False),
    Column("stage", String(8), nullable=False),
    Column("policy", String(128), nullable=False),
    Column("score", Float),
    Column("threshold", Float),
    Column("propensity", Float, nullable=False),
    Column("outcome", String(16)),
    Column("n_tools", Integer, nullable=False),
    Column("n_messages", Integer, nullable=False),
    Column("streamed", Boolean, nullable=False),
    Column("status", Integer, nullable=False),
    Column("error_code", String(64)),
    Column("client_disconnected", Boolean, nullable=False),
    Column("key_id", String(32), index=True),
    Column("tenant", String(64)),
    Column("charged_nusd", BigInteger),
    Column("large_model", String(256)),
    Column("large_prompt_tokens", Integer),
    Column("large_completion_tokens", Integer),
    Column("large_cached_tokens", Integer),
    Column("large_cost_nusd", BigInteger),
    Column("small_model", String(256)),
    Column("small_prompt_tokens", Integer),
    Column("small_cached_tokens", Integer),
    Column("small_completion_tokens", Integer),
    Column("small_steps", Integer),
    Column("small_queue_s", Float),
    Column("small_prefill_s", Float),
    Column("small_decode_s", Float),
    Column("latency_s", Float, nullable=False),
    Column("request_sha256", String(64), nullable=False),
    Column("tools_sha256", String(64), nullable=False),
    Column("weights_sha256", String(64)),
    Column("adapter_sha256", String(64)),
    Column("pattern_version", String(16)),
    Column("findings", JSON, nullable=False),
    Column("content", JSON(none_as_null=True)),
    Column("experiment", String(64), index=True),
    Column("arm", String(64)),
    Column("arm_propensity", Float),
    Column("unit_sha256", String(64)),
    Column("tool", String(256)),
    Column("request_bytes", Integer),
    Column("large_attempts", Integer),
    Column("large_estimate_nusd", BigInteger),
    Column("small_cost_nusd", BigInteger),
    Column("large_input_usd_per_mtok", Float),
    Column("large_cached_input_usd_per_mtok", Float),
    Column("large_output_usd_per_mtok", Float),
    Column("audit_propensity", Float),
    Column("bundle_sha256", String(64)),
    Column("certificate", String(16)),
    Column("probability", Float),
)

calls = Table(
    "calls",
    metadata,
    Column("decision_id", String(64), primary_key=True),
    Column("call_index", Integer, primary_key=True, autoincrement=False),
    Column("call_id", String(256), nullable=False, index=True),
    Column("tool", String(256), nullable=False),
)
"""Calls that the large model made, by the provider's ids. Those of the small one carry their decision in the id."""

outcomes = Table(
    "outcomes",
    metadata,
    Column("decision_id", String(64), primary_key=True),
    Column("source", String(16), primary_key=True),
    Column("call_index", Integer, primary_key=True, autoincrement=False),
    Column("at", DateTime(timezone=True), nullable=False),
    Column("label", Integer),
    Column("strength", String(8), nullable=False),
    Column("reason", String(64), nullable=False),
    Column("fault", String(16), nullable=False),
    Column("score", Float),
    Column("comment", Text),
)
"""What is known of a decision afterwards; see `router.ledger.outcomes`."""

audits = Table(
    "audits",
    metadata,
    Column("decision_id", String(64), primary_key=True),
    Column("at", DateTime(timezone=True), nullable=False),
    Column("propensity", Float, nullable=False),
    Column("agreed", Boolean),
    Column("reason", String(64), nullable=False),
    Column("large_model", String(256), nullable=False),
    Column("prompt_tokens", Integer),
    Column("completion_tokens", Integer),
    Column("cost_nusd", BigInteger),
    Column("latency_s", Float, nullable=False),
    Column("answer", JSON(none_as_null=True)),
)
"""Shadow audits: what the large model would have said where the small one answered."""

rollups = Table(
    "rollups",
    metadata,
    Column("day", Date, primary_key=True),
    Column("key_id", String(64), primary_key=True),
    Column("tool", String(256), primary_key=True),
    Column("experiment", String(64), primary_key=True),
    Column("arm", String(64), primary_key=True),
    Column("side", String(8), primary_key=True),
    Column("reason", String(64), primary_key=True),
    *(Column(name, BigInteger, nullable=False) for name in COUNTED),
    *(Column(name, BigInteger, nullable=False) for name in NANO_USD),
)
"""Sums of the days whose rows are gone; empty text where a row had null."""

rolled_days = Table("rolled_days", metadata, Column("day", Date, primary_key=True))
"""Days that are told by `rollups` alone: what is left of their rows does not count any more."""
access_keys = Table(
    "access_keys",
    metadata,
    Column("key_id", String(32), primary_key=True),
    Column("digest", String(64), nullable=False, unique=True),
    Column("hint", String(8), nullable=False),
    Column("name", String(64), nullable=False),
    Column("tenant", String(64)),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("expires_at", DateTime(timezone=True)),
    Column("revoked_at", DateTime(timezone=True)),
    Column("hard_nusd", BigInteger),
    Column("soft_nusd", BigInteger),
    Column("window", String(8), nullable=False),
    Column("requests_per_minute", Integer),
    Column("tokens_per_minute", Integer),
    Column("models", JSON, nullable=False),
)
"""Virtual keys, revoked ones too."""

access_revision = Table(
    "access_revision",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("revision", BigInteger, nullable=False),
)
"""One row, counted up with every change of `access_keys`, in the same transaction: by it a gateway sees that its list
is old."""

access_spend = Table(
    "access_spend",
    metadata,
    Column("period", String(16), primary_key=True),
    Column("key_id", String(32), primary_key=True),
    Column("spent_nusd", BigInteger, nullable=False),
)
"""What each key has spent in each UTC day, each UTC month and in `total`: the sum of its rows' `charged_nusd`, also of
rows that are gone by now. Days that are older than `ledger.keep_days` go with their rows."""

live_experiments = Table(
    "live_experiments",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("definition", Text),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("stopped_at", DateTime(timezone=True)),
    Column("stopped_by", String(16)),
)
"""Experiments that were made over HTTP, as JSON; without a definition: one of the configuration, which was stopped."""

experiment_revision = Table(
    "experiment_revision",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("revision", BigInteger, nullable=False),
)
"""As `access_revision`, of `live_experiments`."""
