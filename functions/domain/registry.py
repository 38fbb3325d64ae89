"""Looks up devices and routes in the database, cached until a notification says they changed."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import asyncpg
import structlog

from functions.domain.cache import Cache
from functions.domain.changes import ChangeListener
from functions.domain.named_sql import read_queries
from functions.domain.payload_filters import PayloadFilter
from functions.domain.quarantine import Executor
from functions.domain.topic_filters import topic_matches
from functions.domain.topics import Topic

_QUERIES = read_queries(Path(__file__).with_name("registry.sql"))
_MAX_TOPICS = 65_536
_NS = 1_000_000_000
_IN_FORCE = frozenset({"ACTIVE", "TRIAL", "GRACE"})
NEVER_NS = 2**63

DeviceKey = tuple[str, str]


@dataclass(slots=True, eq=False)
class RegisteredDevice:
    """A registered device. Times are nanoseconds since 1970.

    Attributes:
        site_id: the device's site.
        status: ACTIVE or REVOKED.
        token_hash: SHA-256 of the provision token; None without a token.
        tenant_status: ACTIVE or SUSPENDED.
        subscription_status: status of the subscription that counts for the device; None without
            one.
        expires_ns: when that subscription ends.
        certificates: start and end of the validity of each active certificate.
        sensors: the sensor names registered so far, and the names found while there was no room.
        sensor_limit: how many sensors may be registered.
        is_regular: device, tenant and subscription are in force; the expiry is not checked.
    """

    site_id: str
    status: str = "ACTIVE"
    token_hash: bytes | None = None
    tenant_status: str = "ACTIVE"
    subscription_status: str | None = "ACTIVE"
    expires_ns: int = NEVER_NS
    certificates: tuple[tuple[int, int], ...] = ()
    sensors: set[str] = field(default_factory=set)
    sensor_limit: int = 20
    is_regular: bool = field(init=False)

    def __post_init__(self) -> None:
        self.is_regular = (
            self.status == self.tenant_status == "ACTIVE" and self.subscription_status in _IN_FORCE
        )

    def misses(self, names: Iterable[str]) -> bool:
        """Whether one of the names is not yet a sensor, and there is room for it."""
        return len(self.sensors) < self.sensor_limit and not self.sensors.issuperset(names)


@dataclass(slots=True, eq=False)
class RegisteredRoute:
    """A route of a tenant's messages, without its destination, which stays in the database."""

    route_id: str
    topic_filter: str
    destination_type: str
    payload_filter: PayloadFilter | None = None


class TenantRoutes:
    """A tenant's enabled routes, by topic."""

    def __init__(self, routes: list[RegisteredRoute]) -> None:
        self._routes = routes
        self._by_topic: dict[Topic, tuple[RegisteredRoute, ...]] = {}

    def on(self, topic: Topic) -> tuple[RegisteredRoute, ...]:
        """The routes whose topic filter matches the topic."""
        known = self._by_topic.get(topic)
        if known is None:
            text = topic.text
            known = tuple(
                route for route in self._routes if topic_matches(route.topic_filter, text)
            )
            if len(self._by_topic) >= _MAX_TOPICS:
                self._by_topic.clear()
            self._by_topic[topic] = known
        return known


class Registry:
    """Cached lookup of devices and routes. Call `start` before use and `stop` after."""

    def __init__(
        self, pool: "asyncpg.Pool[asyncpg.Record]", log: structlog.stdlib.BoundLogger
    ) -> None:
        self._pool = pool
        self._log = log
        self._devices: Cache[DeviceKey, RegisteredDevice] = Cache(self._load_devices)
        self._routes: Cache[str, TenantRoutes] = Cache(self._load_routes)
        self.changes = ChangeListener(pool, self._forget, log)

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
        return await _find_devices(self._pool, keys)

    async def _load_routes(self, tenants: list[str]) -> dict[str, TenantRoutes]:
        rows = await self._pool.fetch(_QUERIES["find_routes"], tenants)
        routes: dict[str, list[RegisteredRoute]] = {}
        for row in rows:
            if (route := self._route(row)) is not None:
                routes.setdefault(row["tenant_id"], []).append(route)
        return {tenant_id: TenantRoutes(of_tenant) for tenant_id, of_tenant in routes.items()}

    def _route(self, row: Any) -> RegisteredRoute | None:  # noqa: ANN401 - the driver's row
        expression = row["payload_filter"]
        try:
            payload_filter = PayloadFilter(expression) if expression else None
        except ValueError:
            # Something else than the management API stored this filter. To serve the route without
            # its filter would leak messages.
            self._log.error("A route's payload filter cannot be read", route_id=row["id"])
            return None
        return RegisteredRoute(
            row["id"], row["topic_filter"], row["destination_type"], payload_filter
        )


async def find_device(
    executor: Executor, tenant_id: str, device_id: str
) -> RegisteredDevice | None:
    """The device as the database has it now; None when it is not registered."""
    return (await _find_devices(executor, [(tenant_id, device_id)])).get((tenant_id, device_id))


async def _find_devices(
    executor: Executor, keys: list[DeviceKey]
) -> dict[DeviceKey, RegisteredDevice]:
    tenants, devices = zip(*keys, strict=True)
    rows = await executor.fetch(_QUERIES["find_devices"], tenants, devices)
    return {(row["tenant_id"], row["device_id"]): _device(row) for row in rows}


def _device(row: Any) -> RegisteredDevice:  # noqa: ANN401 - the driver's row
    return RegisteredDevice(
        row["site_id"],
        row["status"],
        row["provision_token_hash"],
        row["tenant_status"],
        row["subscription_status"],
        NEVER_NS if row["expires_at"] is None else _ns(row["expires_at"]),
        tuple(
            (_ns(first), _ns(last))
            for first, last in zip(row["not_before"], row["not_after"], strict=True)
        ),
        set(row["sensors"]),
        row["sensor_limit"],
    )


def _ns(time: datetime) -> int:
    return int(time.timestamp() * _NS)


__all__ = [
    "DeviceKey",
    "RegisteredDevice",
    "RegisteredRoute",
    "Registry",
    "TenantRoutes",
    "find_device",
]
