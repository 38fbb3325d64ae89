"""What replays need to find jobs."""

from functions.domain.migrations import execute_sql

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    """Change columns and indexes."""
    execute_sql(__file__)
