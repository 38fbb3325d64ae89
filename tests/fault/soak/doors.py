"""The doors by which devices send; each returns when the message is stored."""

import asyncio
import base64
import gzip
import json
import ssl
import time
from collections.abc import Sequence
from typing import Any, Protocol

import aiohttp
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

from tests.fault.soak.ledger import Ledger

TENANT, SITE = "soak", "s1"
AGAIN_S = 0.5
_ANSWER = aiohttp.ClientTimeout(total=20)
_STORED, _SOME_STORED, _AWAY = 202, 207, 503


def token_of(device: str) -> str:
    """The device's provision token."""
    return f"token-of-{device}-0123456789"


def body_of(device: str, kind: str, number: int) -> dict[str, Any]:
    """The payload of a device's message."""
    told: dict[str, Any] = {"site_id": SITE, "provision_token": token_of(device)}
    if kind == "shadow/reported":
        return told | {"reported": {"n": number}}
    return told | {"metrics": {"n": number, "sent_s": time.time(), "temperature": 21.5}}


class Door(Protocol):
    """Where a device's messages go in."""

    name: str

    async def send(self, device: str, kind: str, number: int) -> None:
        """Return when the message is stored, or refused for good, which the ledger then has."""


class HttpDoor:
    """Devices that post each message, with a key by which it is stored once."""

    name = "http"

    def __init__(self, session: aiohttp.ClientSession, url: str, ledger: Ledger) -> None:
        self._session = session
        self._url = url
        self._ledger = ledger

    async def send(self, device: str, kind: str, number: int) -> None:
        """See `Door`."""
        body = json.dumps(body_of(device, kind, number)).encode()
        await self.post(device, kind, number, body)

    async def post(self, device: str, kind: str, number: int, body: bytes) -> None:
        """Post until it is stored or refused."""
        url = f"{self._url}/ingest/v1/tenant/{TENANT}/device/{device}/{kind}"
        headers = {"content-type": "application/json", "idempotency-key": f"{kind}-{number}"}
        while True:
            status, text = await answer_of(self._session, "POST", url, data=body, headers=headers)
            if status == _STORED:
                self._ledger.confirmed(self.name, device, kind, number)
                return
            if status not in {0, _AWAY}:
                self._ledger.refused.append(f"{self.name} {device} {kind}: {status} {text}")
                return
            self._ledger.again[self.name] += 1
            await asyncio.sleep(AGAIN_S)


class BatchDoor:
    """Devices that keep their readings and post several at once, in gzip."""

    name = "http batch"
    items = 10

    def __init__(self, session: aiohttp.ClientSession, url: str, ledger: Ledger) -> None:
        self._session = session
        self._url = url
        self._ledger = ledger
        self._kept: dict[str, list[tuple[int, dict[str, Any]]]] = {}

    async def send(self, device: str, kind: str, number: int) -> None:
        """Keep the reading, and post all that are kept when there are enough."""
        kept = self._kept.setdefault(device, [])
        kept.append((number, body_of(device, "telemetry", number)))
        if len(kept) >= self.items:
            self._kept[device] = []
            # Once: with another content it would be another message.
            for _, reading in kept:
                reading["metrics"]["sent_s"] = time.time()
            await self._post(device, kept)

    async def flush(self) -> None:
        """Post what is kept."""
        kept, self._kept = self._kept, {}
        await asyncio.gather(*(self._post(device, few) for device, few in kept.items() if few))

    async def _post(self, device: str, kept: Sequence[tuple[int, dict[str, Any]]]) -> None:
        url = f"{self._url}/ingest/v1/tenant/{TENANT}/device/{device}/telemetry/batch"
        headers = {
            "content-type": "application/x-ndjson",
            "content-encoding": "gzip",
            "x-provision-token": token_of(device),
            "idempotency-key": f"batch-{kept[0][0]}",
        }
        left = list(kept)
        while left:
            lines = "\n".join(json.dumps(reading) for _, reading in left)
            status, text = await answer_of(
                self._session, "POST", url, data=gzip.compress(lines.encode(), 1), headers=headers
            )
            if status in {_STORED, _SOME_STORED}:
                left = self._sort(device, left, json.loads(text)["items"])
            elif status not in {0, _AWAY}:
                self._ledger.refused.append(f"{self.name} {device}: {status} {text}")
                return
            if left:
                self._ledger.again[self.name] += 1
                await asyncio.sleep(AGAIN_S)

    def _sort(
        self,
        device: str,
        sent: Sequence[tuple[int, dict[str, Any]]],
        items: Sequence[dict[str, Any]],
    ) -> list[tuple[int, dict[str, Any]]]:
        left = []
        for (number, reading), item in zip(sent, items, strict=True):
            if item["status"] == _STORED:
                self._ledger.confirmed(self.name, device, "telemetry", number)
            elif item["status"] == _AWAY:
                left.append((number, reading))
            else:
                self._ledger.refused.append(f"{self.name} {device}: {item}")
        return left


class EmqxDoor:
    """Devices behind EMQX: its HTTP sink posts their messages to the bridge."""

    name = "emqx"

    def __init__(self, session: aiohttp.ClientSession, url: str, key: str, ledger: Ledger) -> None:
        self._session = session
        self._url = f"{url}/bridge/v1/mqtt"
        self._headers = {"x-internal-auth": key}
        self._ledger = ledger

    async def send(self, device: str, kind: str, number: int) -> None:
        """See `Door`."""
        await self.post(device, kind, number, json.dumps(body_of(device, kind, number)).encode())

    async def post(self, device: str, kind: str, number: int, payload: bytes) -> None:
        """Post as the sink does, again after 503."""
        form = {
            "id": f"{device}-{kind}-{number}",
            "topic": f"tenant/{TENANT}/device/{device}/{kind}",
            "username": f"{TENANT}/{device}",
            "payload_base64": base64.b64encode(payload).decode(),
            "publish_received_at": int(time.time() * 1000),
        }
        while True:
            status, text = await answer_of(
                self._session, "POST", self._url, json=form, headers=self._headers
            )
            if status == 204:
                self._ledger.confirmed(self.name, device, kind, number)
                return
            if status not in {0, _AWAY}:
                self._ledger.refused.append(f"{self.name} {device} {kind}: {status} {text}")
                return
            self._ledger.again[self.name] += 1
            await asyncio.sleep(AGAIN_S)


class MqttDoor:
    """One device's session at a broker, which it opens again by itself.

    Args:
        name: `mqtt` for nats-server's listener, `mosquitto` for that broker, where the confirmation
            means that the broker has the message, and the bridge stores it later.
        port: of the broker.
    """

    def __init__(self, name: str, port: int, device: str, ledger: Ledger) -> None:
        self.name = name
        self.device = device
        self._ledger = ledger
        self._loop = asyncio.get_running_loop()
        self._awaited: dict[int, asyncio.Future[None]] = {}
        self._topic = f"tenant/{TENANT}/device/{device}"
        self._client = Client(CallbackAPIVersion.VERSION2, client_id=f"{TENANT}/{device}")
        self._client.username_pw_set(f"{TENANT}/{device}", token_of(device))
        self._client.reconnect_delay_set(1, 2)
        self._client.on_connect = self._on_connect
        self._client.on_publish = self._on_publish
        self._client.on_message = self._on_message
        self._port = port

    def start(self) -> None:
        """Connect, on a thread of its own."""
        self._client.connect_async("127.0.0.1", self._port)
        self._client.loop_start()

    def stop(self) -> None:
        """End the session and its thread."""
        self._client.disconnect()
        self._client.loop_stop()

    async def send(self, device: str, kind: str, number: int) -> None:
        """See `Door`; the client sends it again after each broken connection."""
        del device
        await self.publish(kind, json.dumps(body_of(self.device, kind, number)).encode())
        self._ledger.confirmed(self.name, self.device, kind, number)

    async def publish(self, kind: str, payload: bytes) -> None:
        """Return when the broker has confirmed it."""
        done: asyncio.Future[None] = self._loop.create_future()
        # The callback may come before the number is known: both run on the loop.
        self._awaited[self._client.publish(f"{self._topic}/{kind}", payload, 1).mid] = done
        await done

    # paho defines the signatures.
    def _on_connect(
        self, client: Client, _data: Any, _flags: Any, _reason: Any, _more: Any
    ) -> None:
        client.subscribe(f"{self._topic}/commands", 1)

    def _on_publish(self, _client: Client, _data: Any, mid: int, _reason: Any, _more: Any) -> None:
        self._loop.call_soon_threadsafe(self._confirm, mid)

    def _confirm(self, mid: int) -> None:
        if (done := self._awaited.pop(mid, None)) is not None and not done.done():
            done.set_result(None)

    def _on_message(self, _client: Client, _data: Any, message: MQTTMessage) -> None:
        self._loop.call_soon_threadsafe(self._obey, bytes(message.payload))

    def _obey(self, payload: bytes) -> None:
        command = json.loads(payload)["command_id"]
        self._ledger.executed[command] = self.device
        told = {
            "command_id": command,
            "status": "succeeded",
            "provision_token": token_of(self.device),
        }
        self._client.publish(f"{self._topic}/commands/ack", json.dumps(told), 1)


async def answer_of(
    session: aiohttp.ClientSession, method: str, url: str, **options: Any
) -> tuple[int, str]:
    """Status and body of an answer; 0 and the error if there is none."""
    try:
        async with session.request(method, url, timeout=_ANSWER, **options) as answer:
            return answer.status, await answer.text(errors="replace")
    except (aiohttp.ClientError, TimeoutError, ssl.SSLError, OSError) as failure:
        return 0, type(failure).__name__
