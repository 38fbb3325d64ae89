"""The doors to devices as their manifests bind them: tenants take turns, and nothing is lost."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from runtime.broker.connection import Broker
from runtime.context import Publication
from tests.support.host import Journal, consumer, eventually, running_host
from tests.support.mosquitto import Mosquitto
from tests.support.servers import NatsServer

ROOT = Path(__file__).parents[2]
FLOOD = 6000
STREAMS: dict[str, Any] = {"DOWNLINKS": {"subjects": ["downlinks.>"], "storage": "memory"}}


def door(file: str, name: str, **fields: Any) -> dict[str, Any]:
    """A door of a shipped manifest, which also gets what was stored before it was bound."""
    spec: dict[str, Any] = yaml.safe_load((ROOT / file).read_text())["functions"][name]
    return {name: {**spec, "consumer": {**spec["consumer"], "deliver": "all"}, **fields}}


@pytest.fixture
async def flooded(nats_server: NatsServer, broker: Broker) -> AsyncIterator[Broker]:
    """A stream with many commands of tenant `loud`, and one of tenant `quiet` behind them."""
    await broker.api(
        "STREAM.CREATE.DOWNLINKS",
        {"name": "DOWNLINKS", "subjects": ["downlinks.>"], "storage": "memory"},
    )
    expires_at = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    given = [("loud", f"c{number}") for number in range(FLOOD)] + [("quiet", "c")]
    for first in range(0, len(given), 500):
        await broker.publish_many(
            [
                Publication(
                    f"downlinks.{tenant}.d1.commands.{command}",
                    json.dumps({"command_id": command, "expires_at": expires_at}).encode(),
                    f"{tenant}-{command}",
                )
                for tenant, command in given[first : first + 500]
            ]
        )
    yield broker
    await broker.api("STREAM.DELETE.DOWNLINKS")


async def settled(broker: Broker, durable: str) -> None:
    async def look() -> bool:
        found = await consumer(broker, "DOWNLINKS", durable)
        return not found["num_pending"] and not found["num_ack_pending"]

    await eventually(look, "everything settled")


async def test_at_the_listener_one_tenants_flood_does_not_delay_another(
    nats_server: NatsServer, flooded: Broker
) -> None:
    heard = Journal()
    subscription = await flooded.subscribe("tenant.*.device.d1.commands", heard.add)
    functions = door("manifests/commands.yaml", "send_downlinks")
    # A batch takes as long as the servers need to say which devices are connected.
    system = nats_server.system_url
    async with running_host(nats_server.url, functions, streams=STREAMS, nats_system_url=system):
        messages = await heard.wait(FLOOD + 1)
        await settled(flooded, "downlinks-listener")
    await subscription.unsubscribe()
    tenants = [message.subject.split(".")[1] for message in messages]
    assert tenants.index("quiet") < FLOOD // 2
    assert len({message.data for message in messages}) == FLOOD + 1


@pytest.mark.mosquitto
async def test_at_a_broker_one_tenants_flood_does_not_delay_another(
    nats_server: NatsServer, flooded: Broker, tmp_path: Path
) -> None:
    mosquitto = Mosquitto(tmp_path / "mosquitto")
    reports = Journal()

    async def take(message: Any) -> None:
        reports.add(json.loads(message.data)["commands"])
        await flooded.publish_core(message.reply, b"{}")

    answers: set[asyncio.Future[None]] = set()
    subscription = await flooded.subscribe(
        "management.commands.sent",
        lambda message: answers.add(asyncio.ensure_future(take(message))),
    )
    functions = door(
        "deploy/mosquitto/downlinks.yaml", "mqtt_downlinks", settings={"url": mosquitto.url}
    )
    try:
        async with running_host(nats_server.url, functions, streams=STREAMS):
            await settled(flooded, "downlinks-mqtt-bridge")

            async def all_reported() -> bool:
                return sum(map(len, reports.entries)) >= FLOOD + 1

            await eventually(all_reported, "reports of all commands")
    finally:
        await subscription.unsubscribe()
        mosquitto.stop()
    tenants = [each["tenant_id"] for report in reports.entries for each in report]
    assert tenants.index("quiet") < FLOOD // 2
