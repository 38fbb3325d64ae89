"""What servers tell of the connections of devices."""

from datetime import UTC, datetime
from typing import Any

import orjson
import pytest

from functions.presence.event_buffer import EventBuffer, in_waves
from functions.presence.sessions import (
    EndedSession,
    Session,
    read_event,
    read_listing,
    read_server,
)

AT = datetime(2026, 11, 29, 13, 40, 53, 18578, tzinfo=UTC)
START = "2026-11-29T13:40:53.018578442Z"
CLIENT: dict[str, Any] = {
    "start": START,
    "host": "127.0.0.1",
    "id": 7,
    "acc": "$G",
    "user": "test/d.1",
    "issuer_key": "$G",
    "kind": "Client",
    "client_type": "mqtt",
    "client_id": "test/d//1",
}
SESSION = Session("NSERVER", 7, "test", "d.1", AT, AT)
LISTED = {
    "cid": 7,
    "type": "mqtt",
    "start": START,
    "authorized_user": "test/d.1",
    "issuer_key": "$G",
}


def event(**client: Any) -> bytes:
    return orjson.dumps({"server": {"id": "NSERVER"}, "client": CLIENT | client})


def listing(*connections: dict[str, Any], **data: Any) -> bytes:
    found = {"now": START, "total": len(connections), "connections": connections} | data
    return orjson.dumps({"server": {"id": "NSERVER"}, "data": found})


def test_a_connection_begins_and_ends() -> None:
    assert read_event(event(), "$G") == SESSION
    assert read_event(event(stop=START), "$G") == EndedSession(SESSION, AT)


@pytest.mark.parametrize(
    "client",
    [
        # Nobody has let it in: a login that failed, or a user of the configuration.
        {"issuer_key": ""},
        {"issuer_key": None},
        {"client_type": "nats"},
        {"acc": "ANOTHER"},
        {"user": "service_pulse"},
        {"user": "test/"},
        {"user": "te st/dev1"},
        {"user": "test/.."},
        {"user": 7},
        {"id": "7"},
        {"id": True},
        {"id": 0},
        {"id": 2**63},
        {"start": "yesterday"},
        {"start": None},
    ],
    ids=str,
)
def test_other_connections_say_nothing(client: dict[str, Any]) -> None:
    assert read_event(event(**client), "$G") is None
    assert read_event(event(**client, stop=START), "$G") is None


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"7", b'{"client": 7}', b"\xff"])
def test_what_is_no_event_says_nothing(data: bytes) -> None:
    assert read_event(data, "$G") is None
    assert read_listing(data, "$G") is None
    assert read_server(data) is None


def test_a_listing_has_the_sessions_of_devices() -> None:
    host = {"cid": 1, "type": "nats", "start": START, "authorized_user": "runtime"}
    claims = {**LISTED, "cid": 9}
    del claims["issuer_key"]
    elsewhere = {**LISTED, "cid": 8, "account": "ANOTHER"}

    found = read_listing(listing(host, LISTED, elsewhere, claims, total=4), "$G")

    assert found is not None
    assert (found.server_id, found.first, found.last, found.count) == ("NSERVER", 1, 9, 4)
    assert found.sessions == [SESSION]
    assert found.total == 4


def test_servers_give_their_ids_and_versions() -> None:
    assert read_server(b'{"server": {"id": "N", "ver": "2.11.3"}}') == ("N", (2, 11))
    assert read_server(b'{"server": {"id": "N", "ver": "2.14.0-dev"}}') == ("N", (2, 14))
    assert read_server(b'{"server": {"id": "N", "ver": "new"}}') is None
    assert read_server(b'{"server": {"id": 7, "ver": "2.11.3"}}') is None


def test_no_event_of_a_device_is_passed_over_unless_it_connects_all_the_time() -> None:
    other = SESSION._replace(device_id="d.2", connection_id=99)
    events: list[Session | EndedSession] = []
    for number in range(1, 6):
        session = SESSION._replace(connection_id=number)
        events += [session, EndedSession(session, AT)]
    events.append(other)

    waves = in_waves(events)

    assert [(len(wave.opened), len(wave.ended)) for wave in waves] == [
        (2, 0),
        (0, 1),
        (1, 0),
        (3, 4),
    ]
    assert waves[0].opened == [events[0], other]


async def test_the_buffer_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("functions.presence.event_buffer._MAX_EVENTS", 2)
    events = EventBuffer("$G")
    events.take("", b"nothing")
    for _ in range(2):
        events.take("", event())
    assert not events.is_incomplete
    events.take("", event())
    assert events.is_incomplete

    count = await events.wait()
    assert [len(wave.opened) for wave in events.first(count)] == [1, 1]
    events.drop(count)
    assert events.first(1000) == []
