"""Ends the MQTT sessions of devices that may no longer connect with what they proved."""

import asyncio
import contextlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import orjson

from functions.device_auth.expired_sessions import StoredSessions
from functions.device_auth.floods import FloodMeter, SessionLimits, Traffic
from functions.device_auth.identity import read_client_id
from functions.device_auth.shut_out import ShutOut
from functions.domain.background_task import BackgroundTask
from functions.domain.named_sql import read_queries
from functions.domain.topics import is_device_id, is_tenant_id
from runtime import Context, NoAnswer, RequestFailed

if TYPE_CHECKING:
    Pool = asyncpg.Pool[asyncpg.Record]

QUERIES = read_queries(Path(__file__).with_name("queries.sql"))

_PAGE = 1000
# From that many changed devices on it is cheaper to list all sessions.
_MANY = 20
_WAIT_S = 0.3
_KICK_S = 2.0
_AGAIN_S = 1.0
_UNPROVEN = "The session of a device was ended: what it proved may no longer count"
_FLOOD = "The session of a device was ended: it sends far more than a device may"
_TOO_MANY = "The session of a device was ended: it has more subscriptions than it may"
# The servers' clocks may differ by this. A session as young may have shown the old proof.
_CLOCKS_APART = timedelta(seconds=5)
# Of a device that is unknown, revoked or of a suspended tenant: later than any session began.
_NOT_ALLOWED = datetime(9000, 1, 1, tzinfo=UTC)

Device = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Session:
    """An open connection of a device, as its server lists it."""

    server_id: str
    connection_id: int
    device: Device
    started_at: datetime
    client_id: str
    subscriptions: int
    messages: int
    size_bytes: int


def read_sessions(answer: bytes) -> list[Session]:
    """The devices' connections in a server's answer to CONNZ; others are left out."""
    content = orjson.loads(answer)
    server_id = content["server"]["id"]
    return [
        Session(
            server_id,
            each["cid"],
            device,
            _read_time(each["start"]),
            each["mqtt_client"],
            each.get("subscriptions", 0),
            each.get("in_msgs", 0),
            each.get("in_bytes", 0),
        )
        for each in content.get("data", {}).get("connections") or []
        if each.get("type") == "mqtt" and (device := _device_of(each))
    ]


def read_client_ids(answer: bytes) -> set[str]:
    """The client ids of all MQTT clients in a server's answer to CONNZ."""
    connections = orjson.loads(answer).get("data", {}).get("connections") or []
    return {str(each.get("mqtt_client", "")) for each in connections if each.get("type") == "mqtt"}


def _device_of(connection: dict[str, Any]) -> Device | None:
    client_id = read_client_id(str(connection.get("mqtt_client", "")))
    tenant_id, slash, rest = client_id.partition("/")
    device_id = rest.partition("/")[0]
    known = slash and is_tenant_id(tenant_id) and is_device_id(device_id)
    return (tenant_id, device_id) if known else None


def _read_time(text: str) -> datetime:
    # Python reads at most microseconds, Go writes up to nanoseconds.
    return datetime.fromisoformat(re.sub(r"(\.\d{1,6})\d*", r"\1", text))


class SessionGuard(BackgroundTask):
    """Compares open sessions with the registry whenever it changes, and at intervals.

    Every host looks; a session that two of them end is ended once.

    Args:
        ctx: of the function, with PostgreSQL.
        every_s: seconds between two looks at all sessions, in case that a change was not heard.
        limits: what a session may do that nats-server does not limit.
        outside: the devices that may not come in.
    """

    def __init__(
        self, ctx: Context[Any], every_s: float, limits: SessionLimits, outside: ShutOut
    ) -> None:
        super().__init__(ctx.log)
        self._ctx = ctx
        self._max_subscriptions = limits.max_subscriptions
        window = timedelta(seconds=every_s)
        self._floods = FloodMeter(limits.messages_per_s, limits.bytes_per_s, window)
        self._outside = outside
        self._system = ctx.nats_system
        self._every_s = every_s
        self._changed: set[Device] = set()
        self._all_changed = False
        self._wake = asyncio.Event()
        self.ended = 0

    def hear(self, change: str) -> None:
        """Take a notification of the registry, see `functions.domain.changes`."""
        match change.split("/"):
            case ["device", tenant_id, device_id]:
                self._changed.add((tenant_id, device_id))
            case ["routes", _]:
                return
            case _:
                self._all_changed = True
        self._wake.set()

    async def _run(self) -> None:
        clock = asyncio.get_running_loop().time
        next_look_s = clock() + self._every_s
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(next_look_s):
                    await self._wake.wait()
            # Changes that follow each other do not put off the look at everything.
            if clock() >= next_look_s:
                self._all_changed = True
                next_look_s = clock() + self._every_s
            self._wake.clear()
            changed, self._changed = self._changed, set()
            everything, self._all_changed = self._all_changed, False
            try:
                await self._look(None if everything or len(changed) > _MANY else changed)
            except Exception as failure:  # noqa: BLE001 - later revocations have to end sessions
                self._ctx.log.warning(
                    "Sessions of devices could not be compared with the registry; tried again",
                    error_type=type(failure).__name__,
                )
                self._all_changed = self._all_changed or everything
                self._changed |= changed
                self._wake.set()
                await asyncio.sleep(_AGAIN_S)

    async def _look(self, changed: Iterable[Device] | None) -> None:
        sessions = await (self._list_all() if changed is None else self._list_of(changed))
        for start in range(0, len(sessions), _PAGE):
            await self._end_unproven(sessions[start : start + _PAGE])
        if changed is None:
            await self._end_floods(sessions)
        for session in sessions:
            if session.subscriptions > self._max_subscriptions:
                await self._end(session, _TOO_MANY)
                # Without its record it begins anew.
                await StoredSessions(self._ctx).forget(session.client_id)

    async def _end_floods(self, sessions: Sequence[Session]) -> None:
        by_connection = {(each.server_id, each.connection_id): each for each in sessions}
        traffic = {
            connection: Traffic(each.started_at, each.messages, each.size_bytes)
            for connection, each in by_connection.items()
        }
        found = self._floods.judge(traffic, datetime.now(UTC))
        floods = [by_connection[each] for each in found]
        for device in {session.device for session in floods}:
            await self._outside.add(device)
        for session in floods:
            await self._end(session, _FLOOD)

    async def shut_out(self, device: Device, why: str) -> None:
        """End all sessions of a device, which may not come back at once.

        Args:
            device: the device.
            why: for the log.

        Raises:
            Unavailable: NATS is not connected.
        """
        await self._outside.add(device)
        for session in await self._list_of([device]):
            await self._end(session, why)

    async def _end_unproven(self, sessions: Sequence[Session]) -> None:
        devices = sorted({session.device for session in sessions})
        rows = await self._ctx.postgres.fetch(
            QUERIES["find_devices"],
            [tenant_id for tenant_id, _ in devices],
            [device_id for _, device_id in devices],
        )
        ended_at = {(row["tenant_id"], row["device_id"]): row["proof_ended_at"] for row in rows}
        for session in sessions:
            # Which proof a session showed is not known: the device has to show one again.
            at = ended_at.get(session.device, _NOT_ALLOWED)
            if at is not None and session.started_at < at + _CLOCKS_APART:
                await self._end(session, _UNPROVEN)

    async def _end(self, session: Session, why: str) -> None:
        tenant_id, device_id = session.device
        try:
            await self._system.request(
                f"$SYS.REQ.SERVER.{session.server_id}.KICK",
                orjson.dumps({"cid": session.connection_id}),
                timeout_s=_KICK_S,
            )
        except (NoAnswer, RequestFailed):
            return  # The server or the connection is gone.
        self.ended += 1
        self._ctx.log.info(
            why,
            tenant_id=tenant_id,
            device_id=device_id,
        )

    async def _list_of(self, devices: Iterable[Device]) -> list[Session]:
        names = (f"{tenant_id}/{device_id}" for tenant_id, device_id in devices)
        questions = (self._ask("PING", {"auth": True, "user": name}) for name in names)
        found = {
            session
            for answers in await asyncio.gather(*questions)
            for answer in answers
            for session in read_sessions(answer)
        }
        return sorted(found, key=lambda session: (session.server_id, session.connection_id))

    async def client_ids(self) -> set[str] | None:
        """The client ids of all MQTT clients at the servers that answer; None if none answers."""
        pages = await self._all_pages()
        return set().union(*map(read_client_ids, pages)) if pages else None

    async def _list_all(self) -> list[Session]:
        return [each for page in await self._all_pages() for each in read_sessions(page)]

    async def _all_pages(self) -> list[bytes]:
        """The answers of all servers about all connections."""
        pages: list[bytes] = []
        for answer in await self._ask("PING", {"auth": True, "limit": _PAGE}):
            content = orjson.loads(answer)
            server_id, total = content["server"]["id"], content.get("data", {}).get("total", 0)
            pages.append(answer)
            for offset in range(_PAGE, total, _PAGE):
                options = {"auth": True, "limit": _PAGE, "offset": offset}
                pages += await self._ask(server_id, options)
        return pages

    async def _ask(self, whom: str, options: dict[str, Any]) -> list[bytes]:
        subject, data = f"$SYS.REQ.SERVER.{whom}.CONNZ", orjson.dumps(options)
        system = self._system
        if whom != "PING":
            try:
                return [(await system.request(subject, data, timeout_s=_KICK_S)).data]
            except (NoAnswer, RequestFailed):
                return []
        return [reply.data for reply in await system.request_many(subject, data, wait_s=_WAIT_S)]


__all__ = ["QUERIES", "Session", "SessionGuard", "read_sessions"]
