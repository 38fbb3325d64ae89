"""The log of deliveries."""

from functions.domain.migrations import execute_sql

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Create the tables."""
    execute_sql(__file__)
