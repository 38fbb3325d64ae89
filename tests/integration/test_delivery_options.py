"""Delivery options of a route and their preview, on a real database."""

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest
from pydantic import ValidationError

from functions.domain.delivery_options import token_of
from functions.management import tenants as owners
from functions.management.delivery_options import (
    Previewed,
    get_delivery_options,
    preview_delivery,
    set_delivery_options,
)
from runtime.context import Reply
from runtime.resource.postgres import open_pool
from tests.support.calls import Caller, Outbox
from tests.support.evaluation import EvaluatorHere

MESSAGE = {"payload": {"metrics": {"temp": 22}}, "device_id": "d1"}


@dataclass
class Consumers(Outbox):
    """Answers which consumers the stream of the jobs has, a page at a time."""

    async def request(
        self,
        subject: str,
        data: bytes,
        *,
        timeout_s: float,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        assert subject == "$JS.API.CONSUMER.LIST.ROUTES"
        pages = [
            {"config": {"filter_subject": "routes.*.webhook"}},
            {"config": {"filter_subjects": ["routes.*.webhook.*"]}},
        ]
        at = json.loads(data)["offset"]
        return Reply(json.dumps({"total": 2, "consumers": pages[at : at + 1]}).encode(), {})


@pytest.fixture
async def api(postgres_dsn: str) -> AsyncIterator[Caller]:
    pool = await open_pool(postgres_dsn, max_size=4)
    caller = Caller(pool, outbox=Consumers(), state=EvaluatorHere())
    await caller.ask(owners.create_tenant, tenant_id="test", name="Test")
    yield caller
    await pool.close()


async def a_route(api: Caller, kind: str = "webhook") -> dict[str, Any]:
    route_id = await api.pool.fetchval(
        "INSERT INTO message_routes (tenant_id, name, topic_filter, destination_type)"
        " VALUES ('test', $1, '#', $1) RETURNING id",
        kind,
    )
    return {"tenant_id": "test", "route_id": route_id}


async def test_options_replace_those_before_and_others_see_nothing_of_them(api: Caller) -> None:
    route = await a_route(api)
    wanted = {
        "order_by": "payload.customer.id",
        "retry_delays_s": [5, 300],
        "timeout_s": 5,
        "transformation": {"fields": {"t": "metrics.temp"}},
    }
    kept = await api.ask(set_delivery_options, **route, **wanted)
    assert kept == await api.ask(get_delivery_options, **route)
    assert kept.model_dump(mode="json", include=set(wanted), exclude_none=True) == {
        **wanted,
        "transformation": {"fields": {"t": "metrics.temp"}, "replaces": "payload"},
    }

    await api.ask(set_delivery_options, **route, retry_delays_s=[])
    left = await api.ask(get_delivery_options, **route)
    assert (left.order_by, left.retry_delays_s, left.timeout_s) == (None, (), None)
    for other in ({"tenant_id": "other"}, {"route_id": uuid4()}):
        refused = await api.refuse(get_delivery_options, **{**route, **other})
        assert refused == ("ROUTE_NOT_FOUND", 404)
        assert await api.refuse(set_delivery_options, **{**route, **other}) == refused
        assert await api.refuse(preview_delivery, **{**route, **other}, message=MESSAGE) == refused


@pytest.mark.parametrize(
    "options",
    [
        {"order_by": "payload.("},
        {"retry_delays_s": [0]},
        {"timeout_s": 100},
        {"transformation": {"value": "1 +"}},
        {"unknown": 1},
    ],
)
async def test_options_that_cannot_be_used_are_not_stored(
    api: Caller, options: dict[str, Any]
) -> None:
    route = await a_route(api)
    with pytest.raises(ValidationError):
        await api.ask(set_delivery_options, **route, **options)


async def test_an_order_that_no_function_keeps_is_refused(api: Caller) -> None:
    route = await a_route(api, "slack")

    refused = await api.refuse(set_delivery_options, **route, order_by="device_id")

    assert refused == ("ORDER_NOT_SERVED", 422)


async def test_a_preview_shows_what_a_route_would_send(api: Caller) -> None:
    route = await a_route(api)
    plain: Previewed = await api.ask(preview_delivery, **route, message=MESSAGE)
    assert (plain.payload, plain.order_key, plain.error) == (MESSAGE["payload"], None, None)
    assert plain.body["type"] == "device.telemetry"
    assert plain.body["data"]["device_id"] == "d1"

    made = {"value": "{'c': metrics.temp}", "replaces": "body"}
    await api.ask(set_delivery_options, **route, order_by="device_id", transformation=made)
    shown = await api.ask(preview_delivery, **route, message=MESSAGE)
    assert (shown.payload, shown.body) == ({"c": 22}, {"c": 22})
    assert shown.order_key == token_of(str(route["route_id"]), "d1")
    # A transformation that is not stored yet takes the place of the route's.
    tried = await api.ask(
        preview_delivery, **route, message=MESSAGE, transformation={"fields": {"x": "device_id"}}
    )
    assert tried.body["data"]["payload"] == {"x": "d1"}


@pytest.mark.parametrize(
    ("transformation", "error"),
    [
        (
            {"fields": {"t": "metrics.temp +"}},
            ("TRANSFORMATION_INVALID", "t", 1, 15),
        ),
        ({"fields": {"t": "secret"}}, ("TRANSFORMATION_INVALID", "t", None, None)),
        ({"fields": {"t": 7}}, ("TRANSFORMATION_INVALID", "fields.t", None, None)),
        ({"fields": {"t": "metrics.pressure"}}, ("TRANSFORMATION_FAILED", "t", None, None)),
    ],
)
async def test_a_preview_says_what_is_wrong_and_where(
    api: Caller, transformation: dict[str, Any], error: tuple[Any, ...]
) -> None:
    shown = await api.ask(
        preview_delivery, tenant_id="test", message=MESSAGE, transformation=transformation
    )
    assert shown.error is not None
    assert shown.payload is None
    told = shown.error
    assert (told.code, told.field, told.line, told.column) == error
