"""Runs a gateway inside a test, on a free port and with a real NATS server."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import structlog

from functions.http_gateway import GatewaySettings, serve
from runtime import Context
from runtime.broker.connection import Broker
from runtime.broker.micro import Answer, MicroEndpoint, MicroService
from runtime.context import Scope
from runtime.message import Message
from runtime.registration import SIGNATURE, sign_registration

ADMIN_KEY = "the key of the admin"
BRIDGE_KEY = "the bridge's key"
REGISTRATION_KEY = "the key that hosts and gateway share"
ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}
BRIDGE = {"X-Internal-Auth": BRIDGE_KEY}
JSON = {"Content-Type": "application/json"}
STREAMS = {
    "TELEMETRY": "telemetry.>",
    "SHADOW": "shadow.>",
    "COMMANDS": "commands.>",
    "UNMAPPED": "tenant.>",
}

PROVE_DEVICES = {
    "handler": "functions.ingest.device_proof:prove_devices",
    "endpoint": {"service": "management", "subject": "management.devices.prove"},
    "uses": ["postgres"],
}
"""The function that tells a gateway with `require_token` who is a device, in a manifest's form."""

WATCH_REGISTRY = {
    "handler": "functions.ingest.registry_watch:watch_registry",
    "endpoint": {"service": "management", "subject": "management.devices.watch"},
    "uses": ["postgres"],
}
"""The function that tells gateways what has changed in the registry, in a manifest's form."""

Handler = Callable[[Message], Awaitable[Answer]]


@dataclass
class Lines:
    """The log lines; `wait` returns when a sentence was logged."""

    entries: list[dict[str, Any]] = field(default_factory=list)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def logger(self) -> structlog.stdlib.BoundLogger:
        def keep(_: object, level: str, entry: Any) -> Any:
            self.entries.append({**entry, "level": level})
            self._changed.set()
            raise structlog.DropEvent

        return structlog.stdlib.BoundLogger(None, [keep], {})

    async def wait(self, event: str, **fields: Any) -> dict[str, Any]:
        async with asyncio.timeout(20):
            while True:
                for entry in self.entries:
                    if entry["event"] == event and fields.items() <= entry.items():
                        return entry
                self._changed.clear()
                await self._changed.wait()

    @property
    def text(self) -> str:
        return repr(self.entries)


@dataclass
class Gateway:
    """A running gateway and a client for it."""

    client: httpx.AsyncClient
    port: int
    lines: Lines
    stopping: asyncio.Event
    served: asyncio.Task[None]

    async def ask_raw(self, request: bytes) -> bytes:
        """Send these bytes on a new connection; return all bytes received until its end."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(request)
            async with asyncio.timeout(20):
                return await reader.read()
        finally:
            writer.close()


@asynccontextmanager
async def run_gateway(broker: Broker, **settings: Any) -> AsyncIterator[Gateway]:
    lines = Lines()
    chosen = {
        "port": 0,
        "admin_key": ADMIN_KEY,
        "bridge_key": BRIDGE_KEY,
        "registration_key": REGISTRATION_KEY,
        # Most tests have no registry of devices.
        "require_token": False,
        "discovery_wait_s": 0.1,
        "linger_s": 0,
        "discovery_every_s": 0.2,
        **settings,
    }
    scope = Scope(
        "http_gateway", GatewaySettings.model_validate(chosen), broker, {}, lines.logger()
    )
    served = asyncio.create_task(serve(Context(scope)))
    listening = asyncio.create_task(lines.wait("The gateway listens."))
    await asyncio.wait({served, listening}, return_when=asyncio.FIRST_COMPLETED)
    if served.done():
        listening.cancel()
        await served
    port = (await listening)["port"]
    try:
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False
        ) as client:
            yield Gateway(client, port, lines, scope.stopping, served)
    finally:
        scope.stopping.set()
        done, _ = await asyncio.wait({served}, timeout=20)
        assert done, "the gateway did not end"
    if not served.cancelled():
        served.result()


@asynccontextmanager
async def make_streams(broker: Broker) -> AsyncIterator[None]:
    for name, subject in STREAMS.items():
        config = {"name": name, "subjects": [subject], "storage": "memory"}
        await broker.api(f"STREAM.CREATE.{name}", config)
    yield
    for name in STREAMS:
        await broker.api(f"STREAM.DELETE.{name}")


@dataclass(frozen=True)
class Stored:
    subject: str
    data: bytes
    headers: str

    @property
    def document(self) -> Any:
        return json.loads(self.data)


async def read_stored(broker: Broker, stream: str, sequence: int = 1) -> Stored:
    answer = await broker.api(f"STREAM.MSG.GET.{stream}", {"seq": sequence})
    message = answer["message"]
    headers = base64.b64decode(message.get("hdrs", "")).decode()
    return Stored(message["subject"], base64.b64decode(message.get("data", "")), headers)


async def count_stored(broker: Broker, streams: Iterable[str] = STREAMS) -> dict[str, int]:
    """How many messages each stream holds; empty streams are left out."""
    counts = {
        name: (await broker.api(f"STREAM.INFO.{name}"))["state"]["messages"] for name in streams
    }
    return {name: count for name, count in counts.items() if count}


@asynccontextmanager
async def run_endpoint(
    broker: Broker,
    handle: Handler,
    *,
    name: str = "probe",
    subject: str | None = None,
    key: str | None = REGISTRATION_KEY,
    **metadata: str,
) -> AsyncIterator[MicroService]:
    """Run a real micro service with one endpoint; keyword `http__path` is metadata `http.path`.

    `key` signs the endpoint as a host does; None leaves it unsigned.
    """
    declared: Mapping[str, str] = {
        "function": name,
        "http.method": "POST",
        "http.path": f"/{name}",
        "http.auth": "none",
        **{key.replace("__", "."): value for key, value in metadata.items()},
    }
    subject = subject or f"test.{name}"
    if key is not None:
        declared = {**declared, SIGNATURE: sign_registration(key, subject, declared)}
    endpoint = MicroEndpoint(name, subject, handle, metadata=declared)
    service = MicroService(broker, name, "1.0.0", endpoints=[endpoint])
    await service.start()
    try:
        yield service
    finally:
        await service.stop()


async def echo(message: Message) -> Answer:
    """Return the payload unchanged, so that a test sees what the endpoint received."""
    return Answer(message.data)
