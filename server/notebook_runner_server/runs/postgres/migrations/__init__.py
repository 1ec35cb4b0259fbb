"""The schema of a history in PostgreSQL, for Alembic: a script for each of its versions."""
