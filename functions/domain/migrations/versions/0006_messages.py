"""Messages, their attempts and transitions, and the keys of tenants."""

from functions.domain.migrations import execute_sql

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Create the tables."""
    execute_sql(__file__)
