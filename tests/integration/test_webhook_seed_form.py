"""Jobs of the two-token form become jobs of the three-token form, on a real server."""

from base64 import b64decode
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
import structlog

from functions.route_delivery.job import Job, SeedJob
from functions.route_delivery.seed_form import dispatch_seed_form
from runtime import Context, Event, Message, Reject
from runtime.broker.connection import Broker
from runtime.context import Scope
from runtime.resource.postgres import open_pool
from tests.support.evaluation import EvaluatorHere
from tests.support.outbox import hand_over_of

STORED_AT_NS = 1_785_585_600_123_456_789


class SeedFormFunction:
    """The dispatching function on a new stream and a new database."""

    def __init__(self, broker: Broker, pool: "asyncpg.Pool[asyncpg.Record]") -> None:
        self.broker = broker
        self.pool = pool
        log = structlog.get_logger()
        self.scope = Scope("dispatch_seed_form", None, broker, {"postgres": pool}, log)
        self.scope.state = EvaluatorHere()

    async def dispatch(self, route_id: object, **fields: Any) -> None:
        subject = fields.pop("subject", "routes.test")
        seed = {
            "route": {"id": route_id, "destination_config": {"secret": "inlined"}},
            "tenant_id": "test",
            "topic": "tenant/test/device/dev1/telemetry",
            "payload": {"provision_token": "tok", "metrics": {"temp": 22}},
        }
        data = SeedJob.model_validate(seed | fields)
        message = Message(subject, b"", stream="ROUTES", sequence=7, stored_at_ns=STORED_AT_NS)
        await dispatch_seed_form(Event(message, data), Context(self.scope, message))

    async def stored(self) -> list[tuple[str, str]]:
        """Subject and payload of every message in the stream, once the jobs are handed over."""
        await hand_over_of(self.pool, self.broker).move()
        state = (await self.broker.api("STREAM.INFO.ROUTES", None))["state"]
        messages = [
            (await self.broker.api("STREAM.MSG.GET.ROUTES", {"seq": sequence}))["message"]
            for sequence in range(1, state["last_seq"] + 1)
        ]
        return [(message["subject"], message["data"]) for message in messages]


@pytest.fixture
async def function(broker: Broker, postgres_dsn: str) -> AsyncIterator[SeedFormFunction]:
    pool = await open_pool(postgres_dsn, max_size=2)
    await pool.execute("INSERT INTO tenants (tenant_id) VALUES ('test'), ('other')")
    stream = {"name": "ROUTES", "subjects": ["routes.>"], "retention": "workqueue"}
    await broker.api("STREAM.CREATE.ROUTES", stream)
    yield SeedFormFunction(broker, pool)
    await broker.api("STREAM.DELETE.ROUTES", None)
    await pool.close()


async def add_route(function: SeedFormFunction, tenant_id: str = "test") -> str:
    return str(
        await function.pool.fetchval(
            "INSERT INTO message_routes (tenant_id, name, topic_filter, destination_type)"
            " VALUES ($1, 'r', '#', 'mqtt_republish') RETURNING id",
            tenant_id,
        )
    )


async def test_a_job_is_published_for_its_routes_type_without_anything_inlined(
    function: SeedFormFunction,
) -> None:
    route_id = await add_route(function)
    await function.dispatch(route_id)
    [(subject, data)] = await function.stored()
    assert subject == "routes.test.mqtt_republish"
    assert Job.model_validate_json(b64decode(data)).model_dump(mode="json") == {
        "job_id": f"ROUTES-7-{STORED_AT_NS}-{route_id}",
        "route_id": route_id,
        "tenant_id": "test",
        "device_id": "dev1",
        "topic": "tenant/test/device/dev1/telemetry",
        "msg_type": "telemetry",
        "payload": {"metrics": {"temp": 22}},
        "stored_at": "2026-08-01T12:00:00.123456Z",
        "is_test": False,
    }


async def test_a_redelivery_makes_no_second_job(function: SeedFormFunction) -> None:
    route_id = await add_route(function)
    await function.dispatch(route_id)
    await function.dispatch(route_id)
    assert len(await function.stored()) == 1


@pytest.mark.parametrize("route_id", [7, "7", "0b0e0f5c-9f6e-4f0c-8a53-2f5c3f3a7d11"])
async def test_a_route_that_does_not_exist_is_refused(
    function: SeedFormFunction, route_id: object
) -> None:
    with pytest.raises(Reject) as gone:
        await function.dispatch(route_id)
    assert gone.value.code == "ROUTE_GONE"


async def test_another_tenants_route_does_not_exist(function: SeedFormFunction) -> None:
    route_id = await add_route(function, "other")
    with pytest.raises(Reject) as gone:
        await function.dispatch(route_id)
    assert gone.value.code == "ROUTE_GONE"


async def test_a_job_for_another_tenant_than_its_subjects_is_refused(
    function: SeedFormFunction,
) -> None:
    route_id = await add_route(function)
    with pytest.raises(Reject) as mismatch:
        await function.dispatch(route_id, subject="routes.other")
    assert mismatch.value.code == "TENANT_MISMATCH"


@pytest.mark.parametrize(
    "topic", ["", "telemetry", "tenant/other/device/dev1/telemetry", "tenant/test/device/*/a/b"]
)
async def test_a_topic_that_is_none_of_the_tenants_is_refused(
    function: SeedFormFunction, topic: str
) -> None:
    route_id = await add_route(function)
    with pytest.raises(Reject) as bad:
        await function.dispatch(route_id, topic=topic)
    assert bad.value.code == "BAD_TOPIC_FORMAT"
    assert await function.stored() == []
