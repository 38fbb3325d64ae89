"""A thousand devices that report at their own pace, some garbage, and commands to them."""

import asyncio
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import aiohttp
import asyncpg

from tests.fault.soak.doors import (
    SITE,
    TENANT,
    BatchDoor,
    Door,
    EmqxDoor,
    HttpDoor,
    MqttDoor,
    answer_of,
    body_of,
    token_of,
)
from tests.fault.soak.ledger import Ledger

KINDS = ("telemetry", "telemetry", "heartbeat", "telemetry", "event", "shadow/reported", "status")
GARBAGE_DEVICES = [f"bad-{number}" for number in range(20)]
GARBAGE_SHARE = 0.05
COMMAND_EVERY_S = 1.0
_MQTT_SHARE, _BATCH_SHARE, _EMQX_SHARE = 0.1, 0.2, 0.2
_MOST_MQTT = 100


@dataclass(frozen=True)
class Addresses:
    """Where the platform is, and its keys."""

    gateway: str
    mqtt_port: int
    mosquitto_port: int
    admin_key: str
    bridge_key: str

    @property
    def admin(self) -> dict[str, str]:
        """The headers of the operator."""
        return {"authorization": f"Bearer {self.admin_key}"}


class Fleet:
    """The devices, by door.

    Args:
        count: number of devices.
        rate: messages a second of all together.
    """

    def __init__(
        self,
        addresses: Addresses,
        session: aiohttp.ClientSession,
        ledger: Ledger,
        *,
        count: int,
        rate: float,
    ) -> None:
        self.ledger = ledger
        self.devices = [f"dev-{number}" for number in range(count)]
        self._addresses = addresses
        self._session = session
        self._rate = rate
        self._chance = random.Random(1)  # noqa: S311 - not for secrets
        self._http = HttpDoor(session, addresses.gateway, ledger)
        self._batch = BatchDoor(session, addresses.gateway, ledger)
        self._emqx = EmqxDoor(session, addresses.gateway, addresses.bridge_key, ledger)
        sessions = min(_MOST_MQTT, int(count * _MQTT_SHARE))
        brokers = {"mqtt": addresses.mqtt_port, "mosquitto": addresses.mosquitto_port}
        devices = iter(self.devices)
        self._mqtt = [
            MqttDoor(name, port, device, ledger)
            for name, port in brokers.items()
            for device in islice(devices, sessions)
        ]
        self._doors = dict(self._give_doors())
        ledger.doors = {device: door.name for device, door in self._doors.items()}

    async def run(self, stopping: asyncio.Event) -> None:
        """Send until the event; returns when every message that was begun is stored."""
        for door in self._mqtt:
            door.start()
        async with asyncio.TaskGroup() as tasks:
            for device in self.devices:
                tasks.create_task(self._report(device, stopping))
            tasks.create_task(self._send_garbage(stopping))
            tasks.create_task(self._command(stopping))
        await self._batch.flush()

    def stop(self) -> None:
        """End the MQTT sessions."""
        for door in self._mqtt:
            door.stop()

    def _give_doors(self) -> Sequence[tuple[str, Door]]:
        given: list[tuple[str, Door]] = [(door.device, door) for door in self._mqtt]
        for device in self.devices[len(self._mqtt) :]:
            draw = self._chance.random()
            if draw < _BATCH_SHARE:
                given.append((device, self._batch))
            elif draw < _BATCH_SHARE + _EMQX_SHARE:
                given.append((device, self._emqx))
            else:
                given.append((device, self._http))
        return given

    async def _report(self, device: str, stopping: asyncio.Event) -> None:
        door = self._doors[device]
        interval_s = len(self.devices) / self._rate
        await _pause(stopping, self._chance.uniform(0, interval_s))
        number = 0
        while not stopping.is_set():
            kind = KINDS[number % len(KINDS)]
            self.ledger.under_way[device] = f"{kind} {number} by {door.name}"
            await door.send(device, kind, number)
            del self.ledger.under_way[device]
            number += 1
            await _pause(stopping, interval_s * self._chance.uniform(0.7, 1.3))

    async def _send_garbage(self, stopping: asyncio.Event) -> None:
        number = 0
        while not stopping.is_set():
            device = self._chance.choice(GARBAGE_DEVICES)
            spoil = self._chance.choice(_SPOILS)
            await self._post_garbage(device, number, spoil(device))
            number += 1
            await _pause(stopping, 1 / (self._rate * GARBAGE_SHARE))

    async def _post_garbage(self, device: str, number: int, body: bytes) -> None:
        url = f"{self._addresses.gateway}/ingest/v1/tenant/{TENANT}/device/{device}/telemetry"
        headers = {"content-type": "application/json"}
        if number % 2:
            status, _ = await answer_of(self._session, "POST", url, data=body, headers=headers)
            self.ledger.garbage["http", str(status)] += 1
        else:
            garbage = Ledger()
            door = EmqxDoor(
                self._session, self._addresses.gateway, self._addresses.bridge_key, garbage
            )
            await door.post(device, "telemetry", number, body)
            self.ledger.garbage["emqx", "stored" if garbage.messages else "refused"] += 1

    async def _command(self, stopping: asyncio.Event) -> None:
        number = 0
        while not stopping.is_set() and self._mqtt:
            device = self._chance.choice(self._mqtt).device
            url = f"{self._addresses.gateway}/api/v1/tenants/{TENANT}/devices/{device}/commands"
            form = {"command_id": f"c-{number}", "name": "blink", "expires_in_s": 3600}
            form["timeout_s"] = 3600
            status, _ = await answer_of(
                self._session, "POST", url, json=form, headers=self._addresses.admin
            )
            if status in {200, 201}:
                self.ledger.commands[f"c-{number}"] = device
                number += 1
            await _pause(stopping, COMMAND_EVERY_S)


def _spoiled(change: Callable[[dict[str, object]], object]) -> Callable[[str], bytes]:
    def spoil(device: str) -> bytes:
        body = body_of(device, "telemetry", 0)
        change(body)
        return json.dumps(body).encode()

    return spoil


_SPOILS: Sequence[Callable[[str], bytes]] = (
    lambda device: json.dumps(body_of(device, "telemetry", 0)).encode()[:-3],
    lambda device: b'{"provision_token":"%b","metrics":{"n":NaN}}' % token_of(device).encode(),
    lambda device: b"\xff\xfe" + device.encode(),
    _spoiled(lambda body: body.update(metrics=[1, 2, 3])),
    _spoiled(lambda body: body.update(metrics={"a b": 1})),
    _spoiled(lambda body: body.update(site_id="elsewhere")),
    _spoiled(lambda body: body.update(metrics={"n": "x" * 9000})),
    _spoiled(lambda body: body.update(provision_token="another-token-0123456789")),
)


async def register_fleet(dsn: str, devices: Sequence[str], webhook: dict[str, str]) -> None:
    """Register the tenant, its devices and those that send garbage, and a route for events."""
    database = await asyncpg.connect(dsn)
    try:
        await database.execute("INSERT INTO tenants (tenant_id) VALUES ($1)", TENANT)
        await database.execute(
            "INSERT INTO subscriptions (tenant_id, device_limit) VALUES ($1, $2)",
            *(TENANT, len(devices) + 1000),
        )
        await register_devices(database, TENANT, [*devices, *GARBAGE_DEVICES])
        await database.execute(
            "INSERT INTO message_routes (tenant_id, name, topic_filter, destination_type,"
            " destination_config) VALUES ($1, 'events', $2, 'webhook', $3::text::jsonb)",
            *(TENANT, f"tenant/{TENANT}/device/+/event", json.dumps(webhook)),
        )
    finally:
        await database.close()


async def register_devices(
    database: "asyncpg.Connection[asyncpg.Record]", tenant: str, devices: Sequence[str]
) -> None:
    """Register devices with the tokens of `token_of`."""
    await database.execute(
        "INSERT INTO device_registry (tenant_id, device_id, site_id, provision_token_hash)"
        " SELECT $1, device, $3, sha256(convert_to(token, 'UTF8'))"
        " FROM unnest($2::text[], $4::text[]) AS given (device, token)",
        *(tenant, devices, SITE, [token_of(device) for device in devices]),
    )


async def _pause(stopping: asyncio.Event, pause_s: float) -> None:
    """The pace of a device, cut short by the end."""
    try:
        async with asyncio.timeout(pause_s):
            await stopping.wait()
    except TimeoutError:
        pass
