"""Attackers of every kind that the doors must withstand, each from an address of its own."""

import asyncio
import contextlib
import json
import queue
import random
from collections.abc import Awaitable, Callable, Sequence

import aiohttp
import asyncpg
import nats
from nats.aio.client import Client as Nats
from nats.aio.msg import Msg

from tests.fault.soak.doors import AGAIN_S, TENANT, answer_of, body_of, token_of
from tests.fault.soak.fleet import Addresses, register_devices
from tests.fault.soak.ledger import Ledger
from tests.support.mqtt import MqttSession, publish_with_properties

EVIL = "evil"
_EVIL_DEVICE = "dev-e"
_COSTLY = "payload.list.all(a, payload.list.all(b, payload.list.all(c, a + b + c > -1)))"
_IDLE_CONNECTIONS = 300

_AWAY = (OSError, nats.errors.Error, TimeoutError, AssertionError, queue.Empty)

Attack = Callable[[], Awaitable[None]]


class Attackers:
    """All attackers; each attack is repeated, with a pause, until the end."""

    def __init__(
        self, addresses: Addresses, nats_url: str, victims: Sequence[str], ledger: Ledger
    ) -> None:
        self._addresses = addresses
        self._nats_url = nats_url
        self._victims = victims
        self._ledger = ledger
        self._chance = random.Random(2)  # noqa: S311 - not for secrets
        self._sessions: list[aiohttp.ClientSession] = []

    async def run(self, stopping: asyncio.Event) -> None:
        """Attack until the event."""
        muting, guessing, evil, begging = (self._session(each) for each in (2, 3, 4, 5))
        attacks: list[tuple[str, float, Attack]] = [
            ("mutes by http", 0.05, lambda: self._mute(muting)),
            ("mutes by nats", 0.2, self._mute_by_nats),
            ("guesses keys", 0.2, lambda: self._guess(guessing)),
            ("sends what is costly", 0.5, lambda: self._burden(evil)),
            ("forges by mqtt", 5.0, self._forge),
            ("poisons mosquitto", 2.0, self._poison),
            ("announces an endpoint", 5.0, lambda: self._announce(begging)),
            ("keeps connections", 5.0, self._keep_connections),
            ("breaks http", 1.0, self._break_http),
            ("fills quarantine", 0.5, self._fill),
        ]
        try:
            async with asyncio.TaskGroup() as tasks:
                for name, pause_s, attack in attacks:
                    tasks.create_task(self._repeat(name, pause_s, attack, stopping))
        finally:
            for session in self._sessions:
                await session.close()

    def _session(self, place: int) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(local_addr=(f"127.0.0.{place}", 0))
        session = aiohttp.ClientSession(connector=connector)
        self._sessions.append(session)
        return session

    async def _repeat(
        self, name: str, pause_s: float, attack: Attack, stopping: asyncio.Event
    ) -> None:
        while not stopping.is_set():
            # The platform may be away, and may end whatever it likes of an attacker.
            with contextlib.suppress(*_AWAY):
                async with asyncio.timeout(30):
                    await attack()
                self._ledger.attacks[name] += 1
            await asyncio.sleep(pause_s)

    def _victim(self) -> str:
        return self._chance.choice(self._victims)

    async def _mute(self, session: aiohttp.ClientSession) -> None:
        """Many messages in the name of a device, to use up its rate."""
        device = self._victim()
        body = body_of(device, "telemetry", 0) | {"provision_token": "not-its-token-0123456789"}
        url = f"{self._addresses.gateway}/ingest/v1/tenant/{TENANT}/device/{device}/telemetry"
        for _ in range(10):
            status, _ = await answer_of(session, "POST", url, json=body)
            if status == 202:
                self._ledger.breaches.append(f"a wrong token of {device} was accepted")

    async def _mute_by_nats(self) -> None:
        """The same by a client of nats-server, which has no name."""
        device = self._victim()
        body = body_of(device, "telemetry", 0) | {"provision_token": "not-its-token-0123456789"}
        await self._publish([(f"telemetry.{TENANT}.{device}", json.dumps(body).encode())] * 10)

    async def _guess(self, session: aiohttp.ClientSession) -> None:
        key = {"authorization": f"Bearer guess-{self._chance.random()}"}
        url = f"{self._addresses.gateway}/api/v1/tenants"
        status, _ = await answer_of(session, "GET", url, headers=key)
        if status == 200:
            self._ledger.breaches.append("a guessed admin key opened the API")

    async def _burden(self, session: aiohttp.ClientSession) -> None:
        """What costs a parser, a filter or a merge most, from a device that may send."""
        token = {"x-provision-token": token_of(_EVIL_DEVICE)}
        of_device = f"{self._addresses.gateway}/ingest/v1/tenant/{EVIL}/device/{_EVIL_DEVICE}"
        many_keys = b'{"\\u0061":0,' + b",".join(b'"%d":0' % n for n in range(5000)) + b"}"
        deep = b'{"metrics":' + b"[" * 30000 + b"]" * 30000 + b"}"
        costly = json.dumps({"site_id": "s1", "metrics": {}, "list": list(range(200))}).encode()
        shadow = json.dumps({"reported": {str(n): {str(n): n} for n in range(300)}}).encode()
        for kind, body in (
            ("telemetry", many_keys),
            ("telemetry", deep),
            ("telemetry", costly),
            ("shadow/reported", shadow),
        ):
            headers = token | {"content-type": "application/json"}
            await answer_of(session, "POST", f"{of_device}/{kind}", data=body, headers=headers)

    async def _forge(self) -> None:
        """A device with credentials of its own reads and writes in the name of others."""
        await asyncio.to_thread(self._forge_now)

    def _forge_now(self) -> None:
        name = f"{EVIL}/{_EVIL_DEVICE}"
        topic = f"tenant/{TENANT}/device/{self._victim()}"
        port = self._addresses.mqtt_port
        with MqttSession(port, name, token_of(_EVIL_DEVICE), client_id=name) as session:
            for wanted in (f"{topic}/#", f"{topic}/commands", "tenant/#", "#"):
                session.subscribe(wanted)
            forged = json.dumps({"command_id": "forged", "name": "blink"})
            session.publish(f"{topic}/commands", forged, qos=0, retain=True)
            session.publish(f"{topic}/shadow/delta", forged, qos=0)
            while not session.received.empty():
                heard = session.received.get_nowait()
                if heard.topic.startswith(f"tenant/{TENANT}"):
                    self._ledger.breaches.append(f"another tenant heard {heard.topic}")

    async def _poison(self) -> None:
        """What a client of the broker refuses, reads slowly, or takes for the platform's own."""
        await asyncio.to_thread(self._poison_now)

    def _poison_now(self) -> None:
        port, topic = self._addresses.mosquitto_port, f"tenant/{EVIL}/device/{_EVIL_DEVICE}"
        forged = [("sent-by", "runtime/" + "0" * 64)]
        publish_with_properties(port, f"{topic}/telemetry", "{}", [("\ufeff", "\ufeff")])
        publish_with_properties(port, f"{topic}/telemetry", "{}", [("", "")] * 8_000)
        publish_with_properties(port, f"{topic}/telemetry", "x" * 900_000, forged)
        publish_with_properties(port, f"{topic}/commands", "{}", forged)
        publish_with_properties(port, f"tenant/{EVIL}/\ufeff", "{}", [])

    async def _announce(self, session: aiohttp.ClientSession) -> None:
        """A client of nats-server offers an endpoint of the API that asks for no key."""
        path = "/api/v1/tenants/soak/rogue"
        told = {
            "type": "io.nats.micro.v1.info_response",
            "name": "rogue",
            "id": "rogue",
            "version": "1.0.0",
            "description": "",
            "metadata": {},
            "endpoints": [
                {
                    "name": "rogue",
                    "subject": "management.tenants.list",
                    "queue_group": "q",
                    "metadata": {"http.method": "GET", "http.path": path, "http.auth": "none"},
                }
            ],
        }

        async def answer(message: Msg) -> None:
            await message.respond(json.dumps(told).encode())

        client = await self._connect()
        try:
            await client.subscribe("$SRV.INFO", cb=answer)
            await client.flush()
            url = f"{self._addresses.gateway}{path}"
            status, _ = await answer_of(session, "GET", url)
            if status == 200:
                self._ledger.breaches.append("an endpoint that nobody signed was served")
        finally:
            await client.close()

    async def _keep_connections(self) -> None:
        """Connections that send nothing, a part of a head, or read no answer."""
        host, port = self._addresses.gateway.removeprefix("http://").split(":")
        held: list[asyncio.StreamWriter] = []
        try:
            for number in range(_IDLE_CONNECTIONS):
                _, writer = await asyncio.open_connection(
                    host, int(port), local_addr=(f"127.0.0.{10 + number % 3}", 0)
                )
                held.append(writer)
                if number % 3:
                    head = b"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                    writer.write(head + (b"\r\n" if number % 3 == 1 else b""))
            await asyncio.sleep(3)
        finally:
            for writer in held:
                writer.close()

    async def _break_http(self) -> None:
        """Requests on which parsers disagree."""
        host, port = self._addresses.gateway.removeprefix("http://").split(":")
        lines = (
            b"POST /ingest/v1/tenant/soak/device/dev-0/telemetry HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        )
        for rest in (
            b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1",
            b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
            b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nx",
            b"X: " + b"y" * 40_000,
        ):
            reader, writer = await asyncio.open_connection(
                host, int(port), local_addr=("127.0.0.6", 0)
            )
            try:
                writer.write(lines + rest)
                writer.write_eof()
                async with asyncio.timeout(15):
                    answer = await reader.read()
                if answer.startswith(b"HTTP/1.1 2"):
                    self._ledger.breaches.append(f"a malformed request was accepted: {rest[:40]!r}")
            finally:
                writer.close()

    async def _fill(self) -> None:
        """Large messages of tenants that do not exist."""
        await self._publish([(f"telemetry.nobody-{n}.dev", b"x" * 100_000) for n in range(3)])

    async def _publish(self, messages: Sequence[tuple[str, bytes]]) -> None:
        client = await self._connect()
        try:
            for subject, data in messages:
                await client.publish(subject, data)
            await client.flush(5)
        finally:
            await client.close()

    async def _connect(self) -> Nats:
        async def ignore(_failure: Exception) -> None:
            await asyncio.sleep(0)

        return await nats.connect(
            self._nats_url, allow_reconnect=False, connect_timeout=AGAIN_S * 10, error_cb=ignore
        )


async def register_evil(dsn: str, nowhere: str) -> None:
    """Register the attackers' tenant: a device of its own, and routes with costly filters."""
    database = await asyncpg.connect(dsn)
    try:
        await database.execute("INSERT INTO tenants (tenant_id) VALUES ($1)", EVIL)
        await database.execute("INSERT INTO subscriptions (tenant_id) VALUES ($1)", EVIL)
        await register_devices(database, EVIL, [_EVIL_DEVICE])
        config = json.dumps({"url": nowhere, "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"})
        for number in range(8):
            await database.execute(
                "INSERT INTO message_routes (tenant_id, name, topic_filter, destination_type,"
                " destination_config, payload_filter)"
                " VALUES ($1, $2, 'tenant/+/device/+/telemetry', 'webhook', $3::text::jsonb, $4)",
                *(EVIL, f"costly-{number}", config, _COSTLY),
            )
    finally:
        await database.close()
