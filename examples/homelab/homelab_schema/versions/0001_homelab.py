"""The tables of readings, log lines and events."""

from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the tables. A stream that is made anew counts from 1 again, at another time."""
    op.execute("""
        CREATE TABLE readings (
            stream text, sequence bigint, stored_at timestamptz,
            kind text NOT NULL, place text NOT NULL, value float8, detected boolean, unit text,
            device_id text, location text, measured_at timestamptz,
            PRIMARY KEY (stream, sequence, stored_at)
        )
    """)
    op.execute("CREATE INDEX ON readings (kind, place, stored_at)")
    op.execute("""
        CREATE TABLE log_lines (
            sequence bigint, stored_at timestamptz, source text NOT NULL, line text NOT NULL,
            PRIMARY KEY (sequence, stored_at)
        )
    """)
    op.execute("""
        CREATE TABLE events (
            sequence bigint, stored_at timestamptz, name text NOT NULL, data jsonb NOT NULL,
            PRIMARY KEY (sequence, stored_at)
        )
    """)
