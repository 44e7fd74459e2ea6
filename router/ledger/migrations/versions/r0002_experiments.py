"""Under which experiment a request was served."""

import sqlalchemy as sa
from alembic import op

revision = "0002_experiments"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("decisions", sa.Column("experiment", sa.String(64)))
    op.add_column("decisions", sa.Column("arm", sa.String(64)))
    op.add_column("decisions", sa.Column("arm_propensity", sa.Float))
    op.add_column("decisions", sa.Column("unit_sha256", sa.String(64)))
    op.create_index("ix_decisions_experiment", "decisions", ["experiment"])


def downgrade() -> None:
    op.drop_index("ix_decisions_experiment", "decisions")
    for name in ("unit_sha256", "arm_propensity", "arm", "experiment"):
        op.drop_column("decisions", name)
