"""The history on a PostgreSQL server (`--store postgresql://…`), which needs the extra `postgres`."""
