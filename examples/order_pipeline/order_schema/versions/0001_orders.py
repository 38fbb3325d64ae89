"""The table of orders."""

from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the table."""
    op.execute(
        "CREATE TABLE orders (id text PRIMARY KEY, step text NOT NULL, sequence bigint NOT NULL)"
    )
