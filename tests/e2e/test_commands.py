"""A command by the shipped manifests: given, received, answered, seen by the API and a webhook."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.documentation import ROOT, free_port, serving
from tests.support.host import eventually
from tests.support.mqtt import MqttSession
from tests.support.receiver import Receiver
from tests.support.servers import remove

TENANT = "/api/v1/tenants/acme"
TOKEN = "a-token-of-some-length"
OWN = "tenant/acme/device/pump.1"
PORTS = (
    "GATEWAY_PORT",
    "RUNTIME_NATS_PORT",
    "RUNTIME_MONITOR_PORT",
    "RUNTIME_MQTT_PORT",
)


@pytest.fixture
def environment(server_directory: Path) -> Iterator[dict[str, str]]:
    """A host with the shipped manifests."""
    data = server_directory / "data"
    ports = {name: str(free_port()) for name in PORTS}
    variables = {
        **ports,
        "RUNTIME_DATA_DIR": str(data),
        "ADMIN_KEY": "an-admin-key-of-some-length-0123456789",
        "WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8",
    }
    with serving(ROOT, "manifests", environment=variables):
        yield variables
    remove(data)


@asynccontextmanager
async def calling(environment: dict[str, str]) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{environment['GATEWAY_PORT']}",
        headers={"Authorization": f"Bearer {environment['ADMIN_KEY']}"},
        timeout=60,
        trust_env=False,
    ) as client:
        yield client


async def post(client: httpx.AsyncClient, path: str, **content: Any) -> Any:
    answer = await client.post(path, json=content)
    assert answer.is_success, answer.text
    return answer.json()


async def becomes(client: httpx.AsyncClient, path: str, status: str) -> Any:
    async def look() -> Any:
        command = (await client.get(path)).json()
        return command if command["status"] == status else None

    return await eventually(look, f"a command that is {status}")


def statuses(receiver: Receiver) -> dict[str, list[str]]:
    """Which changes the webhook heard of, in their order, by command."""
    heard: dict[str, dict[int, str]] = {}
    for request in receiver.requests:
        payload = json.loads(request.body)["data"]["payload"]
        heard.setdefault(payload["command_id"], {})[payload["version"]] = payload["status"]
    return {each: [found[n] for n in sorted(found)] for each, found in heard.items()}


async def test_a_command_is_received_by_mqtt_and_http_and_its_answers_are_seen(
    environment: dict[str, str],
) -> None:
    async with calling(environment) as client, Receiver() as receiver:
        await post(client, "/api/v1/tenants", tenant_id="acme", subscription={"device_limit": 5})
        for device in ("pump.1", "meter"):
            content = {"device_id": device, "site_id": "s1", "provision_token": TOKEN}
            await post(client, f"{TENANT}/devices", **content)
        await post(
            client,
            f"{TENANT}/routes",
            name="commands",
            topic_filter="tenant/acme/device/+/commands/state",
            destination_config={"url": receiver.url},
        )

        # By MQTT: while the device is away, then connected.
        commands = f"{TENANT}/devices/pump.1/commands"
        await post(client, commands, command_id="m1", name="start", arguments={"rpm": 1.5})
        session = MqttSession(
            int(environment["RUNTIME_MQTT_PORT"]),
            "acme/pump.1",
            TOKEN,
            client_id="acme/pump//1",
        )
        await asyncio.to_thread(session.__enter__)
        try:
            await asyncio.to_thread(session.subscribe, f"{OWN}/commands")
            message = await asyncio.to_thread(session.received.get, timeout=60)
            assert message.topic == f"{OWN}/commands"
            assert json.loads(message.payload)["arguments"] == {"rpm": 1.5}
            await becomes(client, f"{commands}/m1", "sent")
            answer = {"command_id": "m1", "provision_token": TOKEN, "status": "succeeded"}
            done = json.dumps({**answer, "result": [1]})
            await asyncio.to_thread(session.publish, f"{OWN}/commands/ack", done)
            shown = await becomes(client, f"{commands}/m1", "succeeded")
            assert (shown["result"], shown["answers"][0]["late_ack"]) == ([1], False)
        finally:
            await asyncio.to_thread(session.__exit__, None, None, None)

        # By HTTP.
        commands = f"{TENANT}/devices/meter/commands"
        await post(client, commands, command_id="h1", name="read")
        device, proof = "/ingest/v1/tenant/acme/device/meter", {"X-Provision-Token": TOKEN}
        polled = await client.get(f"{device}/commands?ttd=30", headers=proof)
        assert [each["command_id"] for each in polled.json()["commands"]] == ["h1"]
        await becomes(client, f"{commands}/h1", "sent")
        answered = {"command_id": "h1", "status": "rejected"}
        stored = await client.post(f"{device}/commands/ack", json=answered, headers=proof)
        assert stored.status_code == 202
        await becomes(client, f"{commands}/h1", "rejected")

        async def all_heard() -> bool:
            return statuses(receiver) == {
                "m1": ["queued", "sent", "succeeded"],
                "h1": ["queued", "sent", "rejected"],
            }

        await eventually(all_heard, "all events")
