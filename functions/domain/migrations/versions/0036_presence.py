"""Whether devices are online, since when, and when they were last seen."""

from functions.domain.migrations import execute_sql

revision = "0036"
down_revision = "0035"


def upgrade() -> None:
    """Add the tables of presence, and a device's own timeout."""
    execute_sql(__file__)
