"""Virtual keys, what they spend, and whose a decision was."""

import sqlalchemy as sa
from alembic import op

revision = "0003_access"
down_revision = "0002_experiments"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("decisions", sa.Column("key_id", sa.String(32)))
    op.add_column("decisions", sa.Column("tenant", sa.String(64)))
    op.add_column("decisions", sa.Column("charged_nusd", sa.BigInteger))
    op.create_index("ix_decisions_key_id", "decisions", ["key_id"])
    op.create_table(
        "access_keys",
        sa.Column("key_id", sa.String(32), primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False, unique=True),
        sa.Column("hint", sa.String(8), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("tenant", sa.String(64)),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True)),
        sa.Column("revoked_at", sa.DateTime(timezone=True)),
        sa.Column("hard_nusd", sa.BigInteger),
        sa.Column("soft_nusd", sa.BigInteger),
        sa.Column("window", sa.String(8), nullable=False),
        sa.Column("requests_per_minute", sa.Integer),
        sa.Column("tokens_per_minute", sa.Integer),
        sa.Column("models", sa.JSON, nullable=False),
    )
    revision_table = op.create_table(
        "access_revision",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
    )
    op.bulk_insert(revision_table, [{"id": 1, "revision": 0}])
    op.create_table(
        "access_spend",
        sa.Column("period", sa.String(16), primary_key=True),
        sa.Column("key_id", sa.String(32), primary_key=True),
        sa.Column("spent_nusd", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    for table in ("access_spend", "access_revision", "access_keys"):
        op.drop_table(table)
    op.drop_index("ix_decisions_key_id", "decisions")
    for name in ("charged_nusd", "tenant", "key_id"):
        op.drop_column("decisions", name)
