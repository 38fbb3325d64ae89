"""The table of visits."""

from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the table."""
    op.execute("""
        CREATE TABLE visits (
            sequence bigint, stored_at timestamptz, page text NOT NULL,
            PRIMARY KEY (sequence, stored_at)
        )
    """)
