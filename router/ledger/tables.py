"""The ledger's table; `migrations/` makes it, and a test holds the two together."""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Boolean, Column, DateTime, Float, Integer, MetaData, String, Table

REVISION = "0003_judge_bundles"
"""The last migration: a database that has it is not migrated."""

metadata = MetaData()

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
    Column("bundle_sha256", String(64)),
    Column("certificate", String(16)),
    Column("probability", Float),
)
