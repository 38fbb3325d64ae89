"""Device shadows, commands, and the answers to commands."""

from functions.domain.migrations import execute_sql

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Create the tables."""
    execute_sql(__file__)
