"""What servers of the version before can live with: a column with a default, a table and an index."""

from alembic import op

revision = "0002"
down_revision = "0001"
oldest_version = "0001"


def upgrade() -> None:
    """Adds them."""
    op.execute("ALTER TABLE runs ADD COLUMN remark TEXT NOT NULL DEFAULT 'none'")
    op.execute("CREATE TABLE remarks (position BIGINT PRIMARY KEY REFERENCES runs ON DELETE CASCADE)")
    op.execute("CREATE INDEX runs_by_remark ON runs (remark, position)")
