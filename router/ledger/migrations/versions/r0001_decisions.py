"""The table of decisions."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "decisions",
        sa.Column("decision_id", sa.String(64), primary_key=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("dialect", sa.String(32), nullable=False),
        sa.Column("client_model", sa.String(256), nullable=False),
        sa.Column("side", sa.String(8), nullable=False),
        sa.Column("reason", sa.String(64), nullable=False),
        sa.Column("stage", sa.String(8), nullable=False),
        sa.Column("policy", sa.String(128), nullable=False),
        sa.Column("score", sa.Float),
        sa.Column("threshold", sa.Float),
        sa.Column("propensity", sa.Float, nullable=False),
        sa.Column("outcome", sa.String(16)),
        sa.Column("n_tools", sa.Integer, nullable=False),
        sa.Column("n_messages", sa.Integer, nullable=False),
        sa.Column("streamed", sa.Boolean, nullable=False),
        sa.Column("status", sa.Integer, nullable=False),
        sa.Column("error_code", sa.String(64)),
        sa.Column("client_disconnected", sa.Boolean, nullable=False),
        sa.Column("large_model", sa.String(256)),
        sa.Column("large_prompt_tokens", sa.Integer),
        sa.Column("large_completion_tokens", sa.Integer),
        sa.Column("large_cached_tokens", sa.Integer),
        sa.Column("large_cost_nusd", sa.BigInteger),
        sa.Column("small_model", sa.String(256)),
        sa.Column("small_prompt_tokens", sa.Integer),
        sa.Column("small_cached_tokens", sa.Integer),
        sa.Column("small_completion_tokens", sa.Integer),
        sa.Column("small_steps", sa.Integer),
        sa.Column("small_queue_s", sa.Float),
        sa.Column("small_prefill_s", sa.Float),
        sa.Column("small_decode_s", sa.Float),
        sa.Column("latency_s", sa.Float, nullable=False),
        sa.Column("request_sha256", sa.String(64), nullable=False),
        sa.Column("tools_sha256", sa.String(64), nullable=False),
        sa.Column("weights_sha256", sa.String(64)),
        sa.Column("adapter_sha256", sa.String(64)),
        sa.Column("pattern_version", sa.String(16)),
        sa.Column("findings", sa.JSON, nullable=False),
        sa.Column("content", sa.JSON),
    )
    op.create_index("ix_decisions_created_at", "decisions", ["created_at"])


def downgrade() -> None:
    op.drop_table("decisions")
