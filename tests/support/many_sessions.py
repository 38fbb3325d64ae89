"""A stand-in for a nats-server with very many MQTT connections, at the subjects of a real one.

100,000 sockets are more than a test machine has. This client of the system account answers as a
server does, and publishes its events; what listens to it cannot tell the difference.
"""

import itertools
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import nats
import orjson
from nats.aio.client import Client
from nats.aio.msg import Msg

SERVER_ID = "NSTANDIN"


class ManySessions:
    """A server whose connections are devices of tenant `test`, each named d and its number."""

    def __init__(self, client: Client) -> None:
        self._client = client
        # Connection id and start, by the device's number, in the order of the ids.
        self._open: dict[int, tuple[int, str]] = {}
        self._ids = itertools.count(1)
        # Called after each listing.
        self.on_listed: Callable[[], None] = lambda: None

    @property
    def connection_ids(self) -> list[int]:
        """The ids of the open connections, in their order."""
        return [connection_id for connection_id, _ in self._open.values()]

    def open_silently(self, numbers: Iterable[int]) -> None:
        """Have connections of which no event tells."""
        for number in numbers:
            self._open[number] = (next(self._ids), _now())

    def end_silently(self, numbers: Iterable[int]) -> None:
        """Lose connections of which no event tells."""
        for number in numbers:
            del self._open[number]

    async def connect(self, numbers: Iterable[int]) -> None:
        """Let devices connect."""
        for number in numbers:
            self.open_silently([number])
            await self._tell("CONNECT", self._client_of(number))
        await self._client.flush()

    async def disconnect(self, numbers: Iterable[int], at: datetime | None = None) -> None:
        """Let devices disconnect, or tell that they have done so at a time of the past."""
        for number in numbers:
            client = self._client_of(number)
            del self._open[number]
            await self._tell("DISCONNECT", {**client, "stop": _text(at or datetime.now(UTC))})
        await self._client.flush()

    def _client_of(self, number: int) -> dict[str, Any]:
        connection_id, start = self._open[number]
        return {
            "start": start,
            "id": connection_id,
            "acc": "$G",
            "user": f"test/d{number}",
            "issuer_key": "$G",
            "client_type": "mqtt",
        }

    async def _tell(self, kind: str, client: dict[str, Any]) -> None:
        event = {"server": {"id": SERVER_ID}, "client": client}
        await self._client.publish(f"$SYS.ACCOUNT.$G.{kind}", orjson.dumps(event))

    async def answer_id(self, message: Msg) -> None:
        """Answer to PING."""
        await message.respond(orjson.dumps({"server": {"id": SERVER_ID, "ver": "2.15.1"}}))

    async def answer_connections(self, message: Msg) -> None:
        """Answer to CONNZ, in the order of the ids."""
        options = orjson.loads(message.data)
        offset = options["offset"]
        page = list(self._open.items())[offset : offset + options["limit"]]
        connections = [
            {
                "cid": connection_id,
                "type": "mqtt",
                "start": start,
                "authorized_user": f"test/d{number}",
                "issuer_key": "$G",
            }
            for number, (connection_id, start) in page
        ]
        data = {"now": _now(), "total": len(self._open), "connections": connections}
        await message.respond(orjson.dumps({"server": {"id": SERVER_ID}, "data": data}))
        self.on_listed()


def _now() -> str:
    return _text(datetime.now(UTC))


def _text(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")


@asynccontextmanager
async def many_sessions(system_url: str) -> AsyncIterator[ManySessions]:
    """A server that joins those that listen on `system_url`."""
    client = await nats.connect(system_url)
    server = ManySessions(client)
    await client.subscribe("$SYS.REQ.SERVER.PING", cb=server.answer_id)
    await client.subscribe(f"$SYS.REQ.SERVER.{SERVER_ID}.CONNZ", cb=server.answer_connections)
    await client.flush()
    try:
        yield server
    finally:
        await client.close()
