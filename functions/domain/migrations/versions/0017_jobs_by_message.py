"""Look-ups of jobs by their key use the key's index in a new installation too."""

from functions.domain.migrations import execute_sql

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    """Make the index anew."""
    execute_sql(__file__)
