"""When a proof of a device's identity last ceased to count."""

from functions.domain.migrations import execute_sql

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    """Add the column and its triggers."""
    execute_sql(__file__)
