"""Health of endpoints, paused routes, replays and notices."""

from functions.domain.migrations import execute_sql

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Create the tables."""
    execute_sql(__file__)
