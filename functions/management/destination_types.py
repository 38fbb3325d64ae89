"""Types of destinations: those that deliverers have announced, and an endpoint that lists them."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import asyncpg
import orjson
from pydantic import BaseModel

from functions.domain.destination_schemas import DestinationSchema
from functions.domain.named_sql import read_queries
from functions.management.requests import Request
from runtime import Context, Event


class Reader(Protocol):
    """A pool or a connection."""

    async def fetch(self, query: str, /, *arguments: object) -> list[asyncpg.Record]:
        """The rows of a query."""


_QUERIES = read_queries(Path(__file__).with_name("destination_types.sql"))


class ListDestinationTypes(Request):
    """A request for all types of destinations."""


class DestinationType(BaseModel):
    """A type of destinations.

    Attributes:
        is_delivered: whether a deliverer runs at present; jobs of another type wait for one.
        config_schema: JSON Schema of a route's `destination_config`. `writeOnly` fields are
            secrets; `readOnly` fields are the API's.
    """

    name: str
    is_delivered: bool
    announced_at: datetime
    last_seen_at: datetime
    config_schema: dict[str, Any]


class DestinationTypes(BaseModel):
    """All types, in the order of their names."""

    items: list[DestinationType]


@dataclass(frozen=True, slots=True)
class KnownType:
    """A type as routes need it."""

    schema: DestinationSchema
    is_delivered: bool


async def list_destination_types(
    event: Event[ListDestinationTypes], ctx: Context
) -> DestinationTypes:
    """The types of destinations that deliverers have announced, with their schemas."""
    rows = await ctx.postgres.fetch(_QUERIES["list"])
    return DestinationTypes(
        items=[
            DestinationType(
                name=row["name"],
                is_delivered=row["is_delivered"],
                announced_at=row["announced_at"],
                last_seen_at=row["last_seen_at"],
                config_schema=orjson.loads(row["schema"]),
            )
            for row in rows
        ]
    )


async def find_types(reader: "Reader", names: Iterable[str]) -> dict[str, KnownType]:
    """The types of these names that are known."""
    rows = await reader.fetch(_QUERIES["find"], sorted(set(names)))
    return {
        row["name"]: KnownType(
            DestinationSchema(orjson.loads(row["schema"])), bool(row["is_delivered"])
        )
        for row in rows
    }


__all__ = [
    "DestinationType",
    "DestinationTypes",
    "KnownType",
    "ListDestinationTypes",
    "find_types",
    "list_destination_types",
]
