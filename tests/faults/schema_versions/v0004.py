"""What servers of the version before can use afterwards, but not wait for: a statement that takes a while."""

from alembic import op

revision = "0004"
down_revision = "0003"
oldest_version = "0003"


def upgrade() -> None:
    """Takes its time."""
    op.execute("SELECT pg_sleep(3)")
    op.execute("ALTER TABLE runs ADD COLUMN note TEXT NOT NULL DEFAULT ''")
