"""By whom an experiment was stopped."""

import sqlalchemy as sa
from alembic import op

revision = "0007_stopped_by"
down_revision = "0006_live_experiments"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("live_experiments", sa.Column("stopped_by", sa.String(16)))


def downgrade() -> None:
    op.drop_column("live_experiments", "stopped_by")
