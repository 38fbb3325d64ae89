"""Claim codes, tokens that overlap, numbers of devices, and the erasure of tenants."""

from functions.domain.migrations import execute_sql

revision = "0030"
down_revision = "0029"


def upgrade() -> None:
    """Add them."""
    execute_sql(__file__)
