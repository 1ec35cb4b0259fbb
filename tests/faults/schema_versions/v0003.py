"""What servers of the versions before cannot live with: a column is gone that they may write."""

from alembic import op

revision = "0003"
down_revision = "0002"
oldest_version = "0003"


def upgrade() -> None:
    """Removes it."""
    op.execute("ALTER TABLE runs DROP COLUMN remark")
