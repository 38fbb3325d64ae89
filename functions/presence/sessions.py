"""Reads what nats-servers tell of the connections of devices. Pure.

Only a client that the auth callout has let in is a device: it carries the callout's issuer. A
client that is still being asked about is listed by its server with the user name and client id that
it claims, and its failed login is an event, too; neither says anything about the device.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import orjson

from functions.domain.topics import is_device_id, is_tenant_id

_MQTT = "mqtt"
_MAX_CONNECTION = 2**63
_MAX_SERVER_LENGTH = 64
# What a server leaves out when it means it. Source: nats-server `server/monitor.go`, Connz.
GLOBAL_ACCOUNT = "$G"


class Session(NamedTuple):
    """A connection of a device to one server.

    Attributes:
        server_id: names the server's process; another one after a restart.
        connection_id: grows with each connection of the server.
        tenant_id, device_id: the device.
        started_at: when the server accepted the connection, by its clock.
        known_at: when the server knew it to be open, by its clock.
    """

    server_id: str
    connection_id: int
    tenant_id: str
    device_id: str
    started_at: datetime
    known_at: datetime


class EndedSession(NamedTuple):
    """A connection of a device that has ended.

    Attributes:
        session: which one.
        ended_at: by the server's clock.
        is_lost: it ended with its server, which did not say so.
    """

    session: Session
    ended_at: datetime
    is_lost: bool = False


@dataclass(frozen=True, slots=True)
class Listing:
    """One page of a server's open connections, in the order of their ids.

    Attributes:
        listed_at: by the server's clock.
        first, last: ids of the first and last connection of the page; 0 of an empty one.
        count: the connections on the page, of devices or not.
        total: how many connections the server has.
        sessions: those of devices.
    """

    server_id: str
    listed_at: datetime
    first: int
    last: int
    count: int
    total: int
    sessions: list[Session]


def read_event(data: bytes, account: str) -> Session | EndedSession | None:
    """The session of a device that an event tells of; None for any other event.

    Args:
        data: the event, of `$SYS.ACCOUNT.*.CONNECT` or `$SYS.ACCOUNT.*.DISCONNECT`.
        account: the account of the devices. Another account may have a callout of its own, whose
            users are no devices.
    """
    try:
        event = orjson.loads(data)
        client = event["client"]
        if client.get("client_type") != _MQTT or client.get("acc") != account:
            return None
        if not client.get("issuer_key"):
            return None
        session = _session(event["server"]["id"], client["id"], client.get("user"), client["start"])
        stop = client.get("stop")
        if session is None or stop is None:
            return session
        return EndedSession(session, read_time(stop))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def read_listing(answer: bytes, account: str) -> Listing | None:
    """A page of an answer to CONNZ with `auth`; None when it is none."""
    try:
        content = orjson.loads(answer)
        server_id, data = content["server"]["id"], content["data"]
        connections = data.get("connections") or []
        listed_at = read_time(data["now"])
        sessions = [
            session._replace(known_at=listed_at)
            for each in connections
            if each.get("type") == _MQTT
            and each.get("issuer_key")
            and each.get("account", GLOBAL_ACCOUNT) == account
            and (session := _listed(server_id, each))
        ]
        return Listing(
            server_id,
            listed_at,
            connections[0]["cid"] if connections else 0,
            connections[-1]["cid"] if connections else 0,
            len(connections),
            int(data.get("total", 0)),
            sessions,
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def read_server(answer: bytes) -> tuple[str, tuple[int, int]] | None:
    """Id and version (major, minor) of the server that answers to PING; None when it is none."""
    try:
        server = orjson.loads(answer)["server"]
        major, minor = server["ver"].split(".")[:2]
        found = server["id"]
        version = (int(major), int(minor))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    is_id = isinstance(found, str) and 0 < len(found) <= _MAX_SERVER_LENGTH
    return (found, version) if is_id else None


def _listed(server_id: str, connection: Mapping[str, Any]) -> Session | None:
    user = connection.get("authorized_user")
    return _session(server_id, connection["cid"], user, connection["start"])


def _session(server_id: object, connection_id: object, user: object, start: str) -> Session | None:
    if not (isinstance(user, str) and isinstance(server_id, str) and type(connection_id) is int):
        return None
    tenant_id, _, device_id = user.partition("/")
    if not (is_tenant_id(tenant_id) and is_device_id(device_id)):
        return None
    if not 0 < connection_id < _MAX_CONNECTION or len(server_id) > _MAX_SERVER_LENGTH:
        return None
    started_at = read_time(start)
    return Session(server_id, connection_id, tenant_id, device_id, started_at, started_at)


def read_time(text: str) -> datetime:
    """A time as servers write it, in UTC."""
    # Python reads at most microseconds, Go writes up to nanoseconds.
    return datetime.fromisoformat(re.sub(r"(\.\d{1,6})\d*", r"\1", text)).astimezone(UTC)


__all__ = [
    "GLOBAL_ACCOUNT",
    "EndedSession",
    "Listing",
    "Session",
    "read_event",
    "read_listing",
    "read_server",
    "read_time",
]
