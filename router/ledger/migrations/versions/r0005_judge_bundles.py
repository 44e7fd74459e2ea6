"""By which bundle a decision was judged, which certificate covered it, and how probably its draft was right."""

import sqlalchemy as sa
from alembic import op

revision = "0005_judge_bundles"
down_revision = "0004_outcomes_costs"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("decisions", sa.Column("bundle_sha256", sa.String(64)))
    op.add_column("decisions", sa.Column("certificate", sa.String(16)))
    op.add_column("decisions", sa.Column("probability", sa.Float))


def downgrade() -> None:
    for name in ("probability", "certificate", "bundle_sha256"):
        op.drop_column("decisions", name)
