"""What an answer cost and would have cost, what became of it, shadow audits, and sums of days that are gone."""

import sqlalchemy as sa
from alembic import op

revision = "0004_outcomes_costs"
down_revision = "0003_access"
branch_labels = None
depends_on = None

_COLUMNS = (
    ("tool", sa.String(256)),
    ("request_bytes", sa.Integer),
    ("large_attempts", sa.Integer),
    ("large_estimate_nusd", sa.BigInteger),
    ("small_cost_nusd", sa.BigInteger),
    ("large_input_usd_per_mtok", sa.Float),
    ("large_cached_input_usd_per_mtok", sa.Float),
    ("large_output_usd_per_mtok", sa.Float),
    ("audit_propensity", sa.Float),
)
_SUMS = (
    "requests",
    "failed",
    "unpriced",
    "estimated",
    "large_prompt_tokens",
    "large_cached_tokens",
    "large_completion_tokens",
    "small_prompt_tokens",
    "small_completion_tokens",
    "large_nusd",
    "large_estimate_nusd",
    "small_nusd",
    "audit_nusd",
    "always_large_nusd",
)


def upgrade() -> None:
    for name, kind in _COLUMNS:
        op.add_column("decisions", sa.Column(name, kind))
    op.create_table(
        "calls",
        sa.Column("decision_id", sa.String(64), primary_key=True),
        sa.Column("call_index", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("call_id", sa.String(256), nullable=False),
        sa.Column("tool", sa.String(256), nullable=False),
    )
    op.create_index("ix_calls_call_id", "calls", ["call_id"])
    op.create_table(
        "outcomes",
        sa.Column("decision_id", sa.String(64), primary_key=True),
        sa.Column("source", sa.String(16), primary_key=True),
        sa.Column("call_index", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("label", sa.Integer),
        sa.Column("strength", sa.String(8), nullable=False),
        sa.Column("reason", sa.String(64), nullable=False),
        sa.Column("fault", sa.String(16), nullable=False),
        sa.Column("score", sa.Float),
        sa.Column("comment", sa.Text),
    )
    op.create_table(
        "audits",
        sa.Column("decision_id", sa.String(64), primary_key=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("propensity", sa.Float, nullable=False),
        sa.Column("agreed", sa.Boolean),
        sa.Column("reason", sa.String(64), nullable=False),
        sa.Column("large_model", sa.String(256), nullable=False),
        sa.Column("prompt_tokens", sa.Integer),
        sa.Column("completion_tokens", sa.Integer),
        sa.Column("cost_nusd", sa.BigInteger),
        sa.Column("latency_s", sa.Float, nullable=False),
        sa.Column("answer", sa.JSON),
    )
    op.create_table(
        "rollups",
        sa.Column("day", sa.Date, primary_key=True),
        sa.Column("key_id", sa.String(64), primary_key=True),
        sa.Column("tool", sa.String(256), primary_key=True),
        sa.Column("experiment", sa.String(64), primary_key=True),
        sa.Column("arm", sa.String(64), primary_key=True),
        sa.Column("side", sa.String(8), primary_key=True),
        sa.Column("reason", sa.String(64), primary_key=True),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in _SUMS),
    )
    op.create_table("rolled_days", sa.Column("day", sa.Date, primary_key=True))


def downgrade() -> None:
    for table in ("rolled_days", "rollups", "audits", "outcomes", "calls"):
        op.drop_table(table)
    for name, _ in reversed(_COLUMNS):
        op.drop_column("decisions", name)
