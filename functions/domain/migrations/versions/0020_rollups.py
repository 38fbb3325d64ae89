"""Roll-ups of telemetry by minute, hour and day."""

from functions.domain.migrations import execute_sql

revision = "0020"
down_revision = "0019"


def upgrade() -> None:
    """Create the tables, and mark the rows that are there already."""
    execute_sql(__file__)
