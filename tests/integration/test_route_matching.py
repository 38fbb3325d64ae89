"""Which routes a message would take, and why not, on a real database."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import structlog

from functions.management import tenants as owners
from functions.management.route_matching import MatchedRoute, match_routes, start, stop
from functions.outbound.endpoint import WebhookDestination
from functions.route_delivery.announcement import Announcement
from runtime.resource.postgres import open_pool
from tests.support.calls import Caller

PAYLOAD = {
    "site_id": "s1",
    "provision_token": "a-secret-token",
    "text": "a" * 4000,
    "metrics": {"temp": 22.5},
}
SLOW = "||".join(f"payload.text.matches('(a{{1,{50 + n}}}){{1,30}}b')" for n in range(22))


@pytest.fixture
async def api(postgres_dsn: str) -> AsyncIterator[Caller]:
    pool = await open_pool(postgres_dsn, max_size=4)
    caller = Caller(pool)
    await caller.ask(owners.create_tenant, tenant_id="test", name="Test")
    schema = WebhookDestination.model_json_schema()
    await Announcement(pool, "webhook", schema, structlog.get_logger()).start()
    caller.state = await start(caller.context())
    yield caller
    await stop(caller.context())
    await pool.close()


async def add(api: Caller, name: str, **columns: Any) -> None:
    given = {"topic_filter": "tenant/test/#", "destination_type": "webhook", **columns}
    names = ", ".join(given)
    places = ", ".join(f"${place}" for place in range(2, len(given) + 2))
    await api.pool.execute(
        f"INSERT INTO message_routes (tenant_id, name, {names})"  # noqa: S608 - names of this test
        f" VALUES ('test', $1, {places})",
        name,
        *given.values(),
    )


async def tested(api: Caller, **message: Any) -> dict[str, MatchedRoute]:
    message = {"payload": PAYLOAD, "device_id": "dev1", **message}
    page = await api.ask(match_routes, tenant_id="test", message=message)
    assert page.next_cursor is None
    return {route.name: route for route in page.items}


async def test_every_route_says_whether_it_takes_the_message_and_why_not(api: Caller) -> None:
    fields = {"transformation": {"fields": {"t": "metrics.temp * 2.0", "who": "device_id"}}}
    bad = {"transformation": {"fields": {"t": "metrics.pressure * 2.0"}}}
    await add(api, "all")
    await add(api, "warm", payload_filter="metrics.temp > 20.0", order_by="payload.site_id")
    await add(api, "hot", payload_filter="metrics.temp > 30.0")
    await add(api, "other", topic_filter="tenant/test/device/other/#", payload_filter="1 +")
    await add(api, "off", payload_filter="metrics.temp > 30.0", is_enabled=False)
    await add(api, "missing", payload_filter="metrics.pressure > 1.0")
    await add(api, "failing", payload_filter="metrics.temp > 'x'")
    await add(api, "slow", payload_filter=SLOW)
    await add(api, "unreadable", payload_filter="1 +")
    await add(api, "pigeons", destination_type="pigeon")
    await add(api, "changed", delivery_options=json.dumps(fields))
    await add(api, "refused", delivery_options=json.dumps(bad))
    routes = await tested(api)
    found = {name: [why.code for why in route.reasons] for name, route in routes.items()}
    assert found == {
        "all": [],
        "warm": [],
        "hot": ["FILTER_FALSE"],
        "other": ["TOPIC_NOT_MATCHED"],
        "off": ["ROUTE_DISABLED", "FILTER_FALSE"],
        "missing": ["FIELD_MISSING"],
        "failing": ["FILTER_FAILED"],
        "slow": ["FILTER_STOPPED"],
        "unreadable": ["FILTER_UNREADABLE"],
        "pigeons": [],
        "changed": [],
        "refused": [],
    }
    assert {name for name, route in routes.items() if route.takes} == {
        name for name, reasons in found.items() if not reasons
    }
    assert {name for name, route in routes.items() if route.job} == {
        name for name, reasons in found.items() if not reasons
    }
    assert routes["missing"].reasons[0].detail == "pressure"
    assert "overload" in str(routes["failing"].reasons[0].detail)
    assert [why.code for why in routes["pigeons"].notes] == ["DESTINATION_TYPE_NOT_DELIVERED"]
    assert routes["all"].notes == []
    whole, changed, refused = (routes[name].job for name in ("all", "changed", "refused"))
    assert whole
    assert changed
    assert refused
    assert whole.subject == "routes.test.webhook"
    assert whole.payload == {key: PAYLOAD[key] for key in PAYLOAD if key != "provision_token"}
    assert changed.payload == {"t": 45.0, "who": "dev1"}
    assert (refused.error_code, refused.error_field) == ("TRANSFORMATION_FAILED", "t")
    ordered = routes["warm"].job
    assert ordered
    assert ordered.subject.startswith("routes.test.webhook.")
    # Nothing was stored.
    assert await api.pool.fetchval("SELECT count(*) FROM delivery_jobs") == 0


async def test_a_paused_route_takes_the_message_and_holds_its_job(api: Caller) -> None:
    await add(api, "held")
    await api.pool.execute("UPDATE message_routes SET paused_at = now()")
    route = (await tested(api))["held"]
    assert route.takes
    assert [why.code for why in route.notes] == ["ROUTE_PAUSED"]


@pytest.mark.parametrize(
    ("message", "refused"),
    [
        ({"msg_type": "Not A Type"}, ("BAD_TOPIC_FORMAT", 422)),
        ({"msg_type": "shadow/reported"}, ("MESSAGE_NOT_ROUTED", 422)),
        ({"msg_type": "commands/ack"}, ("MESSAGE_NOT_ROUTED", 422)),
    ],
)
async def test_what_no_route_can_take_is_refused(
    api: Caller, message: dict[str, Any], refused: tuple[str, int]
) -> None:
    message = {"payload": {}, **message}
    assert await api.refuse(match_routes, tenant_id="test", message=message) == refused


async def test_an_answer_is_bounded_and_goes_on_in_pages(api: Caller) -> None:
    large = {"transformation": {"value": "[payload.text, payload.text, payload.text]"}}
    for number in range(60):
        await add(api, f"r{number:03}", delivery_options=json.dumps(large))
    names: list[str] = []
    sizes: list[int] = []
    cursor = None
    while True:
        message = {"payload": PAYLOAD}
        page = await api.ask(match_routes, tenant_id="test", message=message, cursor=cursor)
        names += [route.name for route in page.items]
        sizes.append(len(page.model_dump_json()))
        cursor = page.next_cursor
        if cursor is None:
            break
    assert names == [f"r{number:03}" for number in range(60)]
    assert len(sizes) > 1
    assert max(sizes) < 700_000
