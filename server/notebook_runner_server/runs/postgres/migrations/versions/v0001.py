"""The first schema: the tables that SQLite has too, the contents of runs, and the servers.

`tables` has the statements for those of both databases, whose columns mean the same here and in
`runs.schema`. Text that is compared by its order has the collation "C", which is that of SQLite.
"""

from alembic import op

revision = "0001"
down_revision = None
oldest_version = "0001"

_TABLES = """
CREATE TABLE history (             -- one row
  history_id TEXT NOT NULL,
  expired_change BIGINT NOT NULL,
  last_change BIGINT NOT NULL,     -- changes are numbered here, so that their order is that of the commits
  request_key BYTEA,               -- of the digests of requests
  oldest_version TEXT NOT NULL DEFAULT '' -- of the schema that a server must know to use this one
);
INSERT INTO history (history_id, expired_change, last_change)
  VALUES (substr(replace(gen_random_uuid()::text, '-', ''), 1, 16), 0, 0);
CREATE FUNCTION next_change() RETURNS BIGINT LANGUAGE sql AS
  'UPDATE history SET last_change = last_change + 1 RETURNING last_change';

CREATE TABLE servers (             -- those that work, and those that are gone and not replaced yet
  server_id TEXT PRIMARY KEY,      -- random, of a process
  epoch BIGINT GENERATED ALWAYS AS IDENTITY UNIQUE, -- later servers have higher ones
  name TEXT NOT NULL,              -- for people
  place TEXT NOT NULL,             -- its state folder, on its machine until the next boot
  renewals BIGINT NOT NULL DEFAULT 0, -- of its lease
  workers BIGINT NOT NULL,         -- how many runs it executes at a time
  is_draining BOOLEAN NOT NULL DEFAULT false, -- it begins no more runs
  schema_version TEXT NOT NULL     -- the newest that it knows
) WITH (fillfactor = 50);
CREATE TABLE server_commits (      -- apart from the lease, so that its renewal never waits for a transaction
  server_id TEXT PRIMARY KEY REFERENCES servers ON DELETE CASCADE,
  number BIGINT NOT NULL           -- of the server's last transaction
) WITH (fillfactor = 50);

CREATE TABLE runs (
  position BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  run_id TEXT COLLATE "C" NOT NULL UNIQUE,
  request_id TEXT COLLATE "C" UNIQUE,
  request_digest TEXT NOT NULL,
  state TEXT NOT NULL,
  run TEXT NOT NULL,
  parameters TEXT NOT NULL,
  options TEXT NOT NULL,
  last_sequence BIGINT NOT NULL,
  expire_time BIGINT,
  start_checksum BIGINT,
  checksum BIGINT,
  owner TEXT COLLATE "C" NOT NULL
) WITH (fillfactor = 70);
CREATE INDEX runs_by_state ON runs (state, position);
CREATE INDEX runs_by_expiry ON runs (expire_time) WHERE expire_time IS NOT NULL;
CREATE INDEX runs_by_random_part ON runs ((
  substr(run_id, length(rtrim(run_id, replace(run_id, '-', ''))) + 1)
));
CREATE INDEX runs_by_owner ON runs (owner, position);
CREATE TABLE labels (
  name TEXT COLLATE "C" NOT NULL, value TEXT COLLATE "C" NOT NULL, position BIGINT NOT NULL,
  PRIMARY KEY (name, value, position)
);
CREATE INDEX labels_by_position ON labels (position);
CREATE TABLE events (
  position BIGINT NOT NULL, sequence BIGINT NOT NULL, time BIGINT NOT NULL, event TEXT NOT NULL,
  checksum BIGINT,
  PRIMARY KEY (position, sequence)
);
CREATE INDEX events_of_states ON events (position, sequence) WHERE substr(event, 1, 60) LIKE '%"run"%';
CREATE TABLE segments (
  position BIGINT NOT NULL, segment BIGINT NOT NULL, sequence BIGINT NOT NULL,
  start BIGINT NOT NULL, length BIGINT NOT NULL, content_checksum BIGINT, checksum BIGINT,
  PRIMARY KEY (position, segment, sequence)
);
CREATE INDEX segments_by_sequence ON segments (position, sequence);
CREATE TABLE checkpoints (
  position BIGINT PRIMARY KEY, mark BIGINT NOT NULL, segment_start BIGINT NOT NULL, size BIGINT NOT NULL
);
CREATE TABLE deleted_runs (run_id TEXT PRIMARY KEY);
CREATE TABLE changes (
  change BIGINT PRIMARY KEY DEFAULT next_change(),
  position BIGINT NOT NULL,
  sequence BIGINT NOT NULL,
  state TEXT NOT NULL,
  owner TEXT NOT NULL
);
CREATE INDEX changes_by_position ON changes (position, change);
CREATE TABLE deletions (
  number BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  change BIGINT NOT NULL UNIQUE,
  run_id TEXT COLLATE "C" NOT NULL,
  labels TEXT NOT NULL,
  is_expired INTEGER NOT NULL
);
CREATE INDEX deletions_by_run ON deletions (run_id);
CREATE TABLE receivers (
  name TEXT PRIMARY KEY, change BIGINT NOT NULL, failing_since BIGINT NOT NULL
);
CREATE TABLE notifications (
  position BIGINT PRIMARY KEY, host TEXT COLLATE "C" NOT NULL, uri TEXT NOT NULL
);
CREATE INDEX notifications_by_host ON notifications (host, position);

CREATE TABLE claims (              -- which server executes a run, or has
  position BIGINT PRIMARY KEY REFERENCES runs ON DELETE CASCADE,
  server_id TEXT NOT NULL
);
CREATE TABLE kill_requests (       -- of servers that have not claimed the run
  position BIGINT PRIMARY KEY REFERENCES runs ON DELETE CASCADE,
  grace_period DOUBLE PRECISION NOT NULL, -- in seconds
  processes_ended BIGINT           -- NULL: the run's server has not carried it out yet
);
CREATE INDEX kill_requests_open ON kill_requests (position) WHERE processes_ended IS NULL;

CREATE TABLE segment_chunks (      -- the run's file of segments; where chunks overlap, the latest counts
  position BIGINT NOT NULL REFERENCES runs ON DELETE CASCADE,
  start BIGINT NOT NULL,           -- in the file, in bytes
  number BIGINT GENERATED ALWAYS AS IDENTITY,
  data BYTEA NOT NULL,             -- at most `postgres.contents.CHUNK_BYTES`
  PRIMARY KEY (position, start, number)
);
CREATE TABLE run_inputs (          -- until the run has ended
  position BIGINT PRIMARY KEY REFERENCES runs ON DELETE CASCADE,
  environment TEXT NOT NULL,
  output_uri TEXT NOT NULL,
  files BYTEA                      -- as `input_files.pack` returns it
);
CREATE TABLE file_objects (        -- what is, or may be, in --store-files-uri; those of no run are removed
  name TEXT COLLATE "C" PRIMARY KEY, -- relative to that
  run_id TEXT COLLATE "C" NOT NULL,
  server_id TEXT NOT NULL,         -- the server that writes it
  written_until TIMESTAMPTZ NOT NULL -- when its write has ended at the latest
);
CREATE TABLE run_files (           -- the files that the notebook has left, once the run has ended
  position BIGINT PRIMARY KEY REFERENCES runs ON DELETE CASCADE,
  archive BYTEA,                   -- a zip; NULL: not stored here
  object TEXT UNIQUE REFERENCES file_objects, -- where the zip is instead; NULL: nowhere
  object_bytes BIGINT NOT NULL DEFAULT 0,
  object_sha256 TEXT,
  size BIGINT NOT NULL,            -- of all files, in bytes
  problem TEXT NOT NULL            -- why they are not stored; '': they are
);
"""


def upgrade() -> None:
    """Create the schema."""
    # By the driver itself: SQLAlchemy passes parameters, with which PostgreSQL takes one statement at a time.
    op.get_bind().connection.cursor().execute(_TABLES)
