"""Jobs from their making on: the outbox, hand-overs, and counts of jobs by state."""

from functions.domain.migrations import execute_sql

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Create the tables."""
    execute_sql(__file__)
