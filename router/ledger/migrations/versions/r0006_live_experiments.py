"""Experiments that were made or stopped over HTTP."""

import sqlalchemy as sa
from alembic import op

revision = "0006_live_experiments"
down_revision = "0005_judge_bundles"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "live_experiments",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("definition", sa.Text),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("stopped_at", sa.DateTime(timezone=True)),
    )
    revision_table = op.create_table(
        "experiment_revision",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
    )
    op.bulk_insert(revision_table, [{"id": 1, "revision": 0}])


def downgrade() -> None:
    for table in ("experiment_revision", "live_experiments"):
        op.drop_table(table)
