"""What servers of the version before can use afterwards, but not wait for: its statements take a while."""

from alembic import op

revision = "0004"
down_revision = "0003"
oldest_version = "0003"


def upgrade() -> None:
    """Takes its time."""
    for _ in range(6):
        op.execute("SELECT pg_sleep(0.5)")
    op.execute("ALTER TABLE runs ADD COLUMN note TEXT NOT NULL DEFAULT ''")
