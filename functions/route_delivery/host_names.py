"""Names and ports of hosts in the configuration of routes."""

from typing import Annotated

from pydantic import Field, StringConstraints

HostName = Annotated[
    str, StringConstraints(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9._:-]+$")
]
"""A name in ASCII, or an address without brackets; every address is judged when connecting."""
Port = Annotated[int, Field(ge=1, le=65_535)]

__all__ = ["HostName", "Port"]
