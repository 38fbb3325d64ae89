"""Books of devices' messages, counters of refusals per minute, and bounds of quarantine."""

from functions.domain.migrations import execute_sql

revision = "0022"
down_revision = "0021"


def upgrade() -> None:
    """Create the tables."""
    execute_sql(__file__)
