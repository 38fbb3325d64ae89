"""Looks up devices and routes in the database, cached until a notification says they changed."""

import hmac
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import asyncpg
import structlog

from functions.domain.cache import Cache
from functions.domain.changes import NO_OTHERS, ChangeListener
from functions.domain.delivery_options import OrderKey
from functions.domain.device_activity import (
    AFTER_SESSION_NS,
    DEFAULT_TIMEOUT_S,
    OFFLINE_CHANNEL,
    Seen,
    note_every_ns,
    read_ended,
)
from functions.domain.evaluation.values import Steps
from functions.domain.named_sql import read_queries
from functions.domain.quarantine import Executor
from functions.domain.route_decisions import steps_of
from functions.domain.topic_trie import TopicTrie
from functions.domain.topics import Topic

_QUERIES = read_queries(Path(__file__).with_name("registry.sql"))
_MAX_TOPICS = 65_536
_NS = 1_000_000_000
_IN_FORCE = frozenset({"ACTIVE", "TRIAL", "GRACE"})
NEVER_NS = 2**63
_SKEW_NS = 60 * _NS
"""How far the clock of PostgreSQL, which times a subscription's start, may be ahead of NATS's."""

DeviceKey = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Subscription:
    """A subscription that may count for a device. Times are nanoseconds since 1970."""

    status: str = "ACTIVE"
    starts_ns: int = 0
    expires_ns: int = NEVER_NS

    @property
    def is_in_force(self) -> bool:
        """Whether its status is one of those in force; its times are not looked at."""
        return self.status in _IN_FORCE


@dataclass(slots=True, eq=False)
class RegisteredDevice:
    """A registered device. Times are nanoseconds since 1970.

    Attributes:
        site_id: the device's site.
        status: ACTIVE or REVOKED.
        token_hash: SHA-256 of the provision token; None without a token.
        tenant_status: ACTIVE, SUSPENDED or ERASING.
        subscriptions: those that may count for the device: its own, or else the tenant's
            that are no ADDON.
        certificates: start and end of the validity of each active certificate.
        sensors: the sensor names registered so far, and the names found while there was no room.
        sensor_limit: how many sensors may be registered.
        previous_hash: SHA-256 of the token before, which counts until `previous_until_ns`.
        note_every_ns: after how long it is noted again that the device was seen.
        noted_ns: when a committed transaction last noted it.
        sessionless_ns: its last message that did not come in a session.
        ended_ns: when the last of its sessions ended that was told of.
        regular_from_ns: until `regular_until_ns` device, tenant and a subscription are in force.
        regular_until_ns: equal to `regular_from_ns` when they never are.
    """

    site_id: str
    status: str = "ACTIVE"
    token_hash: bytes | None = None
    tenant_status: str = "ACTIVE"
    subscriptions: tuple[Subscription, ...] = (Subscription(),)
    certificates: tuple[tuple[int, int], ...] = ()
    sensors: set[str] = field(default_factory=set)
    sensor_limit: int = 20
    previous_hash: bytes | None = None
    previous_until_ns: int = 0
    note_every_ns: int = note_every_ns(DEFAULT_TIMEOUT_S)
    noted_ns: int = 0
    sessionless_ns: int = 0
    ended_ns: int = 0
    regular_from_ns: int = field(init=False, default=0)
    regular_until_ns: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        in_force = [found for found in self.subscriptions if found.is_in_force]
        if in_force and self.status == self.tenant_status == "ACTIVE":
            longest = max(in_force, key=lambda found: found.expires_ns - found.starts_ns)
            self.regular_from_ns = longest.starts_ns
            self.regular_until_ns = max(longest.starts_ns, longest.expires_ns)

    def is_token(self, digest: bytes, time_ns: int) -> bool:
        """Whether this is the SHA-256 of a token that counts at a time; in constant time."""
        if self.token_hash is not None and hmac.compare_digest(digest, self.token_hash):
            return True
        return self.is_previous_token(digest, time_ns)

    def is_previous_token(self, digest: bytes, time_ns: int) -> bool:
        """Whether this is the SHA-256 of the replaced token, while that still counts."""
        if self.previous_hash is None or time_ns >= self.previous_until_ns:
            return False
        return hmac.compare_digest(digest, self.previous_hash)

    def subscription_at(self, time_ns: int) -> Subscription | None:
        """The subscription that counts at a time; None when none has started by then."""
        started = [found for found in self.subscriptions if found.starts_ns <= time_ns]
        return max(started, key=lambda found: (found.is_in_force, found.expires_ns), default=None)

    def was_noted(self, seen: Seen) -> None:
        """Note it only after a while again, unless it may have been seen in an ended session."""
        if seen.is_sessionless or seen.at_ns > self.ended_ns + AFTER_SESSION_NS:
            self.noted_ns = max(self.noted_ns, seen.at_ns)

    def end_session(self, ended_ns: int) -> Seen | None:
        """Note its next message; what is to be noted at once, if it has changed to another door."""
        self.ended_ns = max(self.ended_ns, ended_ns)
        self.noted_ns = 0
        return Seen(self.sessionless_ns, True) if self.sessionless_ns > ended_ns else None

    def misses(self, names: Iterable[str]) -> bool:
        """Whether one of the names is not yet a sensor, and there is room for it."""
        return len(self.sensors) < self.sensor_limit and not self.sensors.issuperset(names)


@dataclass(slots=True, eq=False)
class RegisteredRoute:
    """A route of a tenant's messages, without its destination, which stays in the database.

    Attributes:
        steps: what is to be evaluated for each message.
    """

    route_id: str
    topic_filter: str
    destination_type: str
    payload_filter: str | None = None
    order_key: OrderKey | None = None
    steps: Steps = field(init=False)

    def __post_init__(self) -> None:
        self.steps = steps_of(self.payload_filter, self.order_key)


class TenantRoutes:
    """A tenant's enabled routes, by topic. Made anew when one of them changes."""

    def __init__(self, routes: Iterable[RegisteredRoute]) -> None:
        self._routes = TopicTrie((route.topic_filter, route) for route in routes)
        self._by_topic: dict[Topic, tuple[RegisteredRoute, ...]] = {}

    def on(self, topic: Topic) -> tuple[RegisteredRoute, ...]:
        """The routes whose topic filter matches the topic."""
        known = self._by_topic.get(topic)
        if known is None:
            known = tuple(self._routes.matching(topic.text))
            if len(self._by_topic) >= _MAX_TOPICS:
                self._by_topic.clear()
            self._by_topic[topic] = known
        return known


class Registry:
    """Cached lookup of devices and routes. Call `start` before use and `stop` after."""

    def __init__(
        self,
        pool: "asyncpg.Pool[asyncpg.Record]",
        log: structlog.stdlib.BoundLogger,
        on_change: Callable[[str], None] | None = None,
        on_moved: Callable[[dict[DeviceKey, Seen]], None] | None = None,
        others: Mapping[str, Callable[[str], None]] = NO_OTHERS,
    ) -> None:
        """`on_change` gets every change after the caches have forgotten what it concerns.

        `on_moved` gets the cached devices whose session has ended after they had begun to send
        outside of it, and when they did so last. `others` are heard on the same connection, see
        `ChangeListener`.
        """
        self._on_change = on_change
        self._on_moved = on_moved
        self._pool = pool
        self._log = log
        self._devices: Cache[DeviceKey, RegisteredDevice] = Cache(self._load_devices)
        self._routes: Cache[str, TenantRoutes] = Cache(self._load_routes)
        moved = {} if on_moved is None else {OFFLINE_CHANNEL: self._end_sessions}
        self.changes = ChangeListener(pool, self._take, log, others={**others, **moved})

    async def start(self) -> None:
        """Start to listen for changes."""
        await self.changes.start()

    async def stop(self) -> None:
        """Stop listening and return the connection to the pool."""
        await self.changes.stop()

    async def devices(self, keys: Iterable[DeviceKey]) -> dict[DeviceKey, RegisteredDevice | None]:
        """Each device by tenant and device id; None when it is not registered."""
        return await self._devices.lookup(keys, self.changes)

    async def routes(self, tenants: Iterable[str]) -> dict[str, TenantRoutes | None]:
        """Each tenant's routes; None for a tenant without routes."""
        return await self._routes.lookup(tenants, self.changes)

    def _take(self, change: str) -> None:
        self._forget(change)
        if self._on_change is not None:
            self._on_change(change)

    def _end_sessions(self, text: str) -> None:
        tenant_id, ended = read_ended(text)
        moved = {}
        for device_id, ended_ns in ended.items():
            key = (tenant_id, device_id)
            device = self._devices.peek(key)
            if device is not None and (seen := device.end_session(ended_ns)) is not None:
                moved[key] = seen
        if moved and self._on_moved is not None:
            self._on_moved(moved)

    def _forget(self, change: str) -> None:
        match change.split("/"):
            case ["device", tenant_id, device_id]:
                self._devices.forget_one((tenant_id, device_id))
            case ["tenant", tenant_id]:
                self._devices.forget(lambda key: key[0] == tenant_id)
            case ["routes", tenant_id]:
                self._routes.forget_one(tenant_id)
            case _:
                self._devices.forget(lambda _: True)
                self._routes.forget(lambda _: True)

    async def _load_devices(self, keys: list[DeviceKey]) -> dict[DeviceKey, RegisteredDevice]:
        return await find_devices(self._pool, keys)

    async def _load_routes(self, tenants: list[str]) -> dict[str, TenantRoutes]:
        rows = await self._pool.fetch(_QUERIES["find_routes"], tenants)
        routes: dict[str, list[RegisteredRoute]] = {}
        for row in rows:
            routes.setdefault(row["tenant_id"], []).append(_route(row))
        return {tenant_id: TenantRoutes(of_tenant) for tenant_id, of_tenant in routes.items()}


async def find_device(
    executor: Executor, tenant_id: str, device_id: str
) -> RegisteredDevice | None:
    """The device as the database has it now; None when it is not registered."""
    return (await find_devices(executor, [(tenant_id, device_id)])).get((tenant_id, device_id))


async def find_devices(
    executor: Executor, keys: Collection[DeviceKey]
) -> dict[DeviceKey, RegisteredDevice]:
    """Those of the devices that are registered, as the database has them now."""
    tenants, devices = zip(*keys, strict=True)
    rows = await executor.fetch(_QUERIES["find_devices"], tenants, devices)
    return {(row["tenant_id"], row["device_id"]): _device(row) for row in rows}


def _route(row: Any) -> RegisteredRoute:  # noqa: ANN401 - the driver's row
    order_by = row["order_by"]
    return RegisteredRoute(
        row["id"],
        row["topic_filter"],
        row["destination_type"],
        row["payload_filter"],
        OrderKey(order_by, row["id"]) if order_by else None,
    )


def _device(row: Any) -> RegisteredDevice:  # noqa: ANN401 - the driver's row
    return RegisteredDevice(
        row["site_id"],
        row["status"],
        row["provision_token_hash"],
        row["tenant_status"],
        tuple(
            Subscription(
                status, _ns(starts_at) - _SKEW_NS, NEVER_NS if ends_at is None else _ns(ends_at)
            )
            for status, starts_at, ends_at in zip(
                row["statuses"], row["starts_at"] or (), row["expires_at"] or (), strict=True
            )
        ),
        tuple(
            (_ns(first), _ns(last))
            for first, last in zip(row["not_before"], row["not_after"], strict=True)
        ),
        set(row["sensors"]),
        row["sensor_limit"],
        row["previous_token_hash"],
        0 if row["previous_token_until"] is None else _ns(row["previous_token_until"]),
        note_every_ns(row["presence_timeout_s"] or DEFAULT_TIMEOUT_S),
    )


def _ns(time: datetime) -> int:
    return int(time.timestamp() * _NS)


__all__ = [
    "DeviceKey",
    "RegisteredDevice",
    "RegisteredRoute",
    "Registry",
    "Subscription",
    "TenantRoutes",
    "find_device",
    "find_devices",
]
