"""Endpoints for routes, which send a tenant's messages to destinations."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any
from uuid import UUID, uuid4

import asyncpg
from pydantic import AfterValidator, BaseModel, Field, StringConstraints

from functions.domain.named_sql import read_queries
from functions.domain.paging import Page, as_text, cut, read_cursor
from functions.domain.payload_filters import validate_filter
from functions.domain.topic_filters import validate_topic_filter
from functions.domain.values import ConfigObject, Name
from functions.management import destinations
from functions.management.requests import ListRequest, TenantRequest
from functions.management.route_room import check_room
from functions.management.route_states import RouteState, find_states
from functions.management.stored_destinations import RouteSettings, StoredDestinations, check_type
from runtime import Context, Event, Reject

_QUERIES = read_queries(Path(__file__).with_name("routes.sql"))

# Filters, options and the state of a route beside its configuration.
_ROW_BYTES = 4_000
_PAGE_BYTES = 700_000

# The name under which the host looks for a function's settings.
Settings = RouteSettings


def _check_topic_filter(text: str) -> str:
    validate_topic_filter(text)
    return text


def _check_filter(text: str) -> str:
    validate_filter(text)
    return text


TopicFilter = Annotated[str, AfterValidator(_check_topic_filter)]
PayloadFilter = Annotated[str, AfterValidator(_check_filter)]
DestinationTypeName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]{1,32}$")]
# The OpenAPI document shows here the schemas that this subject lists.
DestinationConfig = Annotated[
    ConfigObject, Field(json_schema_extra={"x-schemas-of": "management.destination-types.list"})
]


class CreateRoute(TenantRequest):
    """A new route; `GET /api/v1/destination-types` says what `destination_config` has.

    Secrets that the type generates, such as a webhook's, are generated unless they are given.
    """

    name: Name
    topic_filter: TopicFilter
    destination_type: DestinationTypeName = "webhook"
    destination_config: DestinationConfig
    payload_filter: PayloadFilter | None = None
    is_enabled: bool = True


class RouteRequest(TenantRequest):
    """A request about one route."""

    route_id: UUID


class ListRoutes(ListRequest, TenantRequest):
    """A request for a tenant's routes."""


class UpdateRoute(RouteRequest):
    """A change of a route; an absent field stays as it is.

    A `destination_config` replaces the whole configuration, but keeps generated secrets that it
    does not name, and every secret for which it says `***`; `payload_filter: null` removes the
    filter.
    """

    name: Name | None = None
    topic_filter: TopicFilter | None = None
    destination_config: DestinationConfig | None = None
    payload_filter: PayloadFilter | None = None
    is_enabled: bool | None = None


class RotateSecret(RouteRequest):
    """A new signing secret for a route.

    The old secret signs beside the new one for `overlap_s`, so that the receiver can change over.
    With 0 the old one stops at once; with it do all that were replaced before.
    """

    overlap_s: Annotated[int, Field(ge=0, le=7 * 86_400)] = 86_400


class Route(BaseModel):
    """A route, with its secrets hidden.

    Attributes:
        warning: why its jobs wait, if they do.
        health: the state of the route and its endpoint, in the answers to `GET`.
    """

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
    warning: str | None = None
    health: RouteState | None = None


class RouteWithSecret(Route):
    """A route and its generated secret in clear; no other answer shows the secret.

    Attributes:
        secret: None for a type that has no generated secret.
    """

    secret: str | None


class DeletedRoute(BaseModel):
    """The deleted route."""

    route_id: UUID
    tenant_id: str


async def create_route(event: Event[CreateRoute], ctx: Context) -> RouteWithSecret:
    """Create a route."""
    wanted = event.data
    kind = wanted.destination_type
    stored = await StoredDestinations.of(ctx.postgres, ctx, kind)
    check_type(stored.types, kind, _settings(ctx).accept_types)
    schema = stored.schema(kind)
    config = destinations.complete(kind, schema, wanted.destination_config)
    route_id = uuid4()
    parts = stored.write(kind, config, route_id)
    try:
        async with ctx.postgres.acquire() as connection, connection.transaction():
            await check_room(connection, wanted.tenant_id, _settings(ctx).max_routes)
            row = await connection.fetchrow(
                _QUERIES["insert"],
                *(wanted.tenant_id, wanted.name, wanted.topic_filter, kind, parts.shown),
                *(wanted.payload_filter, wanted.is_enabled, parts.secrets, route_id),
            )
    except asyncpg.UniqueViolationError:
        raise _name_taken() from None
    return _with_secret(row, stored, destinations.secret_to_show(schema, config))


async def get_route(event: Event[RouteRequest], ctx: Context) -> Route:
    """One route."""
    row = await ctx.postgres.fetchrow(_QUERIES["find"], event.data.tenant_id, event.data.route_id)
    if row is None:
        raise _not_found()
    stored = await StoredDestinations.of(ctx.postgres, ctx, row["destination_type"])
    states = await find_states(ctx.postgres, event.data.tenant_id, [row["id"]])
    return _route(row, stored, states)


async def list_routes(event: Event[ListRoutes], ctx: Context) -> Page[Route]:
    """A tenant's routes in the order of their names; empty for an unknown tenant."""
    query = event.data
    (after,) = read_cursor(query.cursor, as_text)
    rows = await ctx.postgres.fetch(_QUERIES["page"], query.tenant_id, after, query.limit + 1)
    limit = min(query.limit, _count_fitting(rows))
    rows = rows[: limit + 1]
    kinds = [row["destination_type"] for row in rows]
    stored = await StoredDestinations.of(ctx.postgres, ctx, *kinds)
    states = await find_states(ctx.postgres, query.tenant_id, [row["id"] for row in rows])
    items = [_route(row, stored, states) for row in rows]
    return cut(items, limit, lambda route: (route.name,))


async def update_route(event: Event[UpdateRoute], ctx: Context) -> Route:
    """Change, enable or disable a route. The change applies to existing jobs too."""
    change = event.data
    async with ctx.postgres.acquire() as connection, connection.transaction():
        row = await connection.fetchrow(_QUERIES["lock"], change.tenant_id, change.route_id)
        if row is None:
            raise _not_found()
        stored = await StoredDestinations.of(connection, ctx, row["destination_type"])
        if change.is_enabled is False:
            await connection.execute(_QUERIES["disable"], change.tenant_id, change.route_id)
        try:
            row = await connection.fetchrow(
                _QUERIES["update"],
                change.tenant_id,
                change.route_id,
                *_changed(row, change, stored),
            )
        except asyncpg.UniqueViolationError:
            raise _name_taken() from None
    return _route(row, stored)


async def rotate_secret(event: Event[RotateSecret], ctx: Context) -> RouteWithSecret:
    """Replace a route's generated secret and show the new one once."""
    wanted = event.data
    overlap = timedelta(seconds=wanted.overlap_s)
    async with ctx.postgres.acquire() as connection, connection.transaction():
        row = await connection.fetchrow(_QUERIES["lock"], wanted.tenant_id, wanted.route_id)
        if row is None:
            raise _not_found()
        kind, endpoint = row["destination_type"], row["endpoint"]
        stored = await StoredDestinations.of(connection, ctx, kind)
        schema = stored.schema(kind)
        now = datetime.now(UTC)
        config = destinations.rotate(schema, stored.read(row), now=now, overlap=overlap)
        parts = stored.write(kind, config, row["id"])
        row = await connection.fetchrow(
            _QUERIES["update"],
            *(wanted.tenant_id, wanted.route_id, row["name"], row["topic_filter"]),
            *(parts.shown, row["payload_filter"], row["is_enabled"], parts.secrets),
        )
        # Without it, a route that was disabled for its endpoint's failures would not be probed.
        await connection.execute(
            _QUERIES["link_endpoint"], wanted.tenant_id, wanted.route_id, endpoint
        )
    return _with_secret(row, stored, destinations.secret_to_show(schema, config))


async def delete_route(event: Event[RouteRequest], ctx: Context) -> DeletedRoute:
    """Delete a route. Its undelivered jobs become dead letters."""
    query = event.data
    if await ctx.postgres.fetchval(_QUERIES["delete"], query.tenant_id, query.route_id) is None:
        raise _not_found()
    return DeletedRoute(route_id=query.route_id, tenant_id=query.tenant_id)


def _count_fitting(rows: Sequence[asyncpg.Record]) -> int:
    """How many of the rows a page holds: a reply is one NATS message."""
    size_bytes = 0
    for count, row in enumerate(rows):
        size_bytes += len(row["destination_config"].encode()) + _ROW_BYTES
        if size_bytes > _PAGE_BYTES and count:
            return count
    return len(rows)


def _settings(ctx: Context) -> RouteSettings:
    return ctx.settings if isinstance(ctx.settings, RouteSettings) else RouteSettings()


def _changed(
    row: asyncpg.Record, change: UpdateRoute, stored: StoredDestinations
) -> tuple[Any, ...]:
    shown, secrets = row["destination_config"], row["destination_secrets"]
    if change.destination_config is not None:
        kind = row["destination_type"]
        config = destinations.complete(
            kind, stored.schema(kind), change.destination_config, old=stored.read(row)
        )
        parts = stored.write(kind, config, row["id"])
        shown, secrets = parts.shown, parts.secrets
    given = change.model_fields_set
    return (
        row["name"] if change.name is None else change.name,
        row["topic_filter"] if change.topic_filter is None else change.topic_filter,
        shown,
        change.payload_filter if "payload_filter" in given else row["payload_filter"],
        row["is_enabled"] if change.is_enabled is None else change.is_enabled,
        secrets,
    )


def _route(
    row: Any,  # noqa: ANN401 - a row
    stored: StoredDestinations,
    states: Mapping[UUID, RouteState] = MappingProxyType({}),
) -> Route:
    known = dict(row)
    del known["destination_secrets"]
    known["destination_config"] = stored.show(row)
    warning = stored.warning(row["destination_type"])
    health = states.get(row["id"])
    return Route(route_id=known.pop("id"), warning=warning, health=health, **known)


def _with_secret(
    row: asyncpg.Record | None,
    stored: StoredDestinations,
    secret: str | None,
) -> RouteWithSecret:
    return RouteWithSecret(**_route(row, stored).model_dump(), secret=secret)


def _not_found() -> Reject:
    return Reject("ROUTE_NOT_FOUND", "The tenant has no such route.", status=404)


def _name_taken() -> Reject:
    return Reject("ROUTE_EXISTS", "The tenant has a route of this name.", status=409)
