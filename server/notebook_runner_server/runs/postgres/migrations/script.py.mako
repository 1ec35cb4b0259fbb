"""${message}"""

from alembic import op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
# The oldest version of the schema whose servers can use this one: see CONTRIBUTING.md.
oldest_version = ${repr(down_revision)}


def upgrade() -> None:
    """Bring the schema to this version."""
    ${upgrades if upgrades else "raise NotImplementedError"}
