"""Endpoints for routes, which send a tenant's messages to destinations."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import asyncpg
import orjson
from pydantic import AfterValidator, BaseModel, Field

from functions.domain.named_sql import read_queries
from functions.domain.paging import Page, as_text, cut, read_cursor
from functions.domain.payload_filters import validate_filter
from functions.domain.topic_filters import validate_topic_filter
from functions.domain.values import JsonObject, Name
from functions.management import destinations
from functions.management.destinations import DestinationType, hide_secrets, read_destination
from functions.management.requests import ListRequest, TenantRequest
from runtime import Context, Event, Reject

_QUERIES = read_queries(Path(__file__).with_name("routes.sql"))


def _check_topic_filter(text: str) -> str:
    validate_topic_filter(text)
    return text


def _check_filter(text: str) -> str:
    validate_filter(text)
    return text


TopicFilter = Annotated[str, AfterValidator(_check_topic_filter)]
PayloadFilter = Annotated[str, AfterValidator(_check_filter)]


class CreateRoute(TenantRequest):
    """A new route; a webhook's secret is generated unless `destination_config` has one."""

    name: Name
    topic_filter: TopicFilter
    destination_type: DestinationType = "webhook"
    destination_config: JsonObject
    payload_filter: PayloadFilter | None = None
    is_enabled: bool = True


class RouteRequest(TenantRequest):
    """A request about one route."""

    route_id: UUID


class ListRoutes(ListRequest, TenantRequest):
    """A request for a tenant's routes."""


class UpdateRoute(RouteRequest):
    """A change of a route; an absent field stays as it is.

    A `destination_config` replaces the whole configuration, but keeps the secret when it names
    none; `payload_filter: null` removes the filter.
    """

    name: Name | None = None
    topic_filter: TopicFilter | None = None
    destination_config: JsonObject | None = None
    payload_filter: PayloadFilter | None = None
    is_enabled: bool | None = None


class RotateSecret(RouteRequest):
    """A new signing secret for a route.

    The old secret signs beside the new one for `overlap_s`, so that the receiver can change over.
    With 0 the old one stops at once; with it do all that were replaced before.
    """

    overlap_s: Annotated[int, Field(ge=0, le=7 * 86_400)] = 86_400


class Route(BaseModel):
    """A route, with its secrets hidden."""

    route_id: UUID
    tenant_id: str
    name: str
    topic_filter: str
    destination_type: str
    destination_config: dict[str, Any]
    payload_filter: str | None
    is_enabled: bool
    created_at: datetime
    updated_at: datetime


class RouteWithSecret(Route):
    """A route and its signing secret in clear; no other answer shows the secret."""

    secret: str


class DeletedRoute(BaseModel):
    """The deleted route."""

    route_id: UUID
    tenant_id: str


async def create_route(event: Event[CreateRoute], ctx: Context) -> RouteWithSecret:
    """Create a route."""
    wanted = event.data
    config = read_destination(wanted.destination_type, wanted.destination_config)
    try:
        row = await ctx.postgres.fetchrow(
            _QUERIES["insert"],
            wanted.tenant_id,
            wanted.name,
            wanted.topic_filter,
            wanted.destination_type,
            json.dumps(config),
            wanted.payload_filter,
            wanted.is_enabled,
        )
    except asyncpg.ForeignKeyViolationError:
        raise Reject("TENANT_NOT_FOUND", "There is no such tenant.", status=404) from None
    except asyncpg.UniqueViolationError:
        raise _name_taken() from None
    return RouteWithSecret(**_route(row).model_dump(), secret=config["secret"])


async def get_route(event: Event[RouteRequest], ctx: Context) -> Route:
    """One route."""
    row = await ctx.postgres.fetchrow(_QUERIES["find"], event.data.tenant_id, event.data.route_id)
    if row is None:
        raise _not_found()
    return _route(row)


async def list_routes(event: Event[ListRoutes], ctx: Context) -> Page[Route]:
    """A tenant's routes in the order of their names; empty for an unknown tenant."""
    query = event.data
    (after,) = read_cursor(query.cursor, as_text)
    rows = await ctx.postgres.fetch(_QUERIES["page"], query.tenant_id, after, query.limit + 1)
    return cut([_route(row) for row in rows], query.limit, lambda route: (route.name,))


async def update_route(event: Event[UpdateRoute], ctx: Context) -> Route:
    """Change, enable or disable a route. The change applies to existing jobs too."""
    change = event.data
    async with ctx.postgres.acquire() as connection, connection.transaction():
        row = await connection.fetchrow(_QUERIES["lock"], change.tenant_id, change.route_id)
        if row is None:
            raise _not_found()
        try:
            row = await connection.fetchrow(
                _QUERIES["update"], change.tenant_id, change.route_id, *_changed(row, change)
            )
        except asyncpg.UniqueViolationError:
            raise _name_taken() from None
    return _route(row)


async def rotate_secret(event: Event[RotateSecret], ctx: Context) -> RouteWithSecret:
    """Replace a route's signing secret and show the new one once."""
    wanted = event.data
    overlap = timedelta(seconds=wanted.overlap_s)
    async with ctx.postgres.acquire() as connection, connection.transaction():
        row = await connection.fetchrow(_QUERIES["lock"], wanted.tenant_id, wanted.route_id)
        if row is None:
            raise _not_found()
        old = orjson.loads(row["destination_config"])
        config = destinations.rotate_secret(old, now=datetime.now(UTC), overlap=overlap)
        row = await connection.fetchrow(
            _QUERIES["update"],
            *(wanted.tenant_id, wanted.route_id, row["name"], row["topic_filter"]),
            *(json.dumps(config), row["payload_filter"], row["is_enabled"]),
        )
    return RouteWithSecret(**_route(row).model_dump(), secret=config["secret"])


async def delete_route(event: Event[RouteRequest], ctx: Context) -> DeletedRoute:
    """Delete a route. Its undelivered jobs become dead letters."""
    query = event.data
    if await ctx.postgres.fetchval(_QUERIES["delete"], query.tenant_id, query.route_id) is None:
        raise _not_found()
    return DeletedRoute(route_id=query.route_id, tenant_id=query.tenant_id)


def _changed(row: asyncpg.Record, change: UpdateRoute) -> tuple[Any, ...]:
    config = row["destination_config"]
    if change.destination_config is not None:
        config = json.dumps(
            read_destination(
                row["destination_type"], change.destination_config, old=orjson.loads(config)
            )
        )
    given = change.model_fields_set
    return (
        row["name"] if change.name is None else change.name,
        row["topic_filter"] if change.topic_filter is None else change.topic_filter,
        config,
        change.payload_filter if "payload_filter" in given else row["payload_filter"],
        row["is_enabled"] if change.is_enabled is None else change.is_enabled,
    )


def _route(row: Any) -> Route:  # noqa: ANN401 - a row, whose columns the model checks
    known = dict(row)
    config = hide_secrets(orjson.loads(known.pop("destination_config")))
    return Route(route_id=known.pop("id"), destination_config=config, **known)


def _not_found() -> Reject:
    return Reject("ROUTE_NOT_FOUND", "The tenant has no such route.", status=404)


def _name_taken() -> Reject:
    return Reject("ROUTE_EXISTS", "The tenant has a route of this name.", status=409)
