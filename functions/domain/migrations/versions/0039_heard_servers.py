"""Notes which nats-servers any host has heard, so that one cut-off host ends no sessions."""

from functions.domain.migrations import execute_sql

revision = "0039"
down_revision = "0038"


def upgrade() -> None:
    """Add the table."""
    execute_sql(__file__)
