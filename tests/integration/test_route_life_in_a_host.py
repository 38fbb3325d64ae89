"""A route's life with the shipped manifests in a host: from its creation to its recovery."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest

from runtime import manifest
from runtime.broker.connection import Broker
from runtime.host import Addresses, Host, HostOptions
from runtime.loader import load_all
from runtime.observe.metrics import Metrics
from tests.support.documentation import ROOT
from tests.support.host import eventually
from tests.support.receiver import Answer, Received, Receiver
from tests.support.servers import NatsServer

pytestmark = pytest.mark.timeout(120)
NAMES = ("management", "telemetry", "routes")
TOKEN = "a-token-of-16-letters"


@pytest.fixture
async def api(nats_server: NatsServer, broker: Broker, postgres_dsn: str) -> AsyncIterator["Api"]:
    environment = {
        "WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8, ::1/128",
        "SECRETS_KEYS": "k" * 32,
    }
    declared = manifest.read([ROOT / "manifests" / f"{name}.yaml" for name in NAMES], environment)
    addresses = Addresses(nats_server.url, postgres_dsn)
    host = Host(declared, load_all(declared), addresses, Metrics("0.0.0"), HostOptions())
    await host.start()
    yield Api(broker)
    await host.drain(10.0)


class Api:
    """The management API over NATS, for one tenant with one device."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker

    async def ask(self, subject: str, **fields: Any) -> dict[str, Any]:
        body = {"tenant_id": "test", **fields}
        reply = await self.broker.request(f"management.{subject}", orjson.dumps(body))
        answer: dict[str, Any] = orjson.loads(reply.data)
        return answer

    async def wait_for(self, subject: str, key: str, value: object, **fields: Any) -> None:
        """Ask until an answer has the value."""

        async def has_value() -> bool:
            return bool((await self.ask(subject, **fields))[key] == value)

        await eventually(has_value, f"{key} {value}")

    async def add_route(self, url: str, topic_filter: str, **fields: Any) -> str:
        route = await self.ask(
            "routes.create",
            name=topic_filter,
            topic_filter=topic_filter,
            destination_type="webhook",
            destination_config={"url": url},
            **fields,
        )
        return str(route["route_id"])

    async def send(self, number: int) -> None:
        body = {
            "site_id": "s1",
            "provision_token": TOKEN,
            "metrics": {"n": number},
        }
        await self.broker.publish("telemetry.test.dev1", orjson.dumps(body), msg_id=f"m-{number}")


def numbers(receiver: Receiver) -> list[int]:
    bodies = (orjson.loads(request.body) for request in receiver.requests)
    return [body["data"]["payload"]["metrics"]["n"] for body in bodies if body["type"] != "test"]


def notices(requests: list[Received]) -> dict[str, Any]:
    """The payloads of notices by type."""
    bodies = (orjson.loads(request.body) for request in requests)
    return {body["type"]: body["data"]["payload"] for body in bodies}


async def test_a_route_is_tested_enabled_paused_resumed_disabled_and_recovered(api: Api) -> None:
    await api.ask("tenants.create")
    token = {"provision_token": TOKEN}
    await api.ask("devices.register", device_id="dev1", site_id="s1", **token)
    async with Receiver(Answer(200)) as receiver, Receiver() as alerts:
        route_id = await api.add_route(receiver.url, "tenant/test/device/#", is_enabled=False)
        await api.add_route(alerts.url, "tenant/test/notices/#")
        route = {"route_id": route_id}
        began_at = datetime.now(UTC) - timedelta(minutes=1)

        tested = await api.ask("routes.test", **route)
        assert (tested["outcome"], tested["status_code"]) == ("delivered", 200)
        await api.ask("routes.update", **route, is_enabled=True)
        await api.wait_for("routes.health", "state", "healthy", **route)

        await api.ask("routes.pause", **route)
        await api.send(1)

        await api.wait_for("routes.health", "held_jobs", 1, **route)
        assert numbers(receiver) == []
        await api.ask("routes.resume", **route)
        await receiver.received(2)
        assert numbers(receiver) == [1]

        receiver.answers = [Answer(410)]
        await api.send(2)
        told = notices(await alerts.received(2))
        disabled, given_up = told["notice.endpoint_disabled"], told["notice.job_given_up"]
        assert disabled["routes"][0]["route_id"] == given_up["route_id"] == route_id
        assert (given_up["code"], given_up["payload"]["metrics"]) == ("ENDPOINT_GONE", {"n": 2})
        assert receiver.url not in str(told)
        assert TOKEN not in str(told)
        health = await api.ask("routes.health", **route)
        assert (health["state"], health["disabled_reason"]) == ("disabled", "ENDPOINT_GONE")
        await api.send(3)
        await api.wait_for("telemetry.latest", "metrics", {"n": 3}, device_id="dev1")

        receiver.answers = [Answer(200)]
        replay = await api.ask("replays.create", **route, since=began_at.isoformat())
        await receiver.received(5)
        assert sorted(numbers(receiver)) == [1, 2, 2, 3]
        names = {"replay_id": replay["replay_id"]}

        await api.wait_for("replays.get", "status", "done", **names)
        assert (await api.ask("replays.get", **names))["sent"] == 2
        listed = await api.ask("notices.list")
        kinds = {one["kind"] for one in listed["items"]}
        assert kinds == {"endpoint_disabled", "job_given_up"}
