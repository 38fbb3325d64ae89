"""What devices ask of their shadows on a real database, and what they are answered."""

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import structlog

from functions.domain.rate_sharing import PostgresStore
from functions.shadow.device_requests import ShadowSettings, answer_device
from functions.shadow.endpoints import delete_shadow, get_shadow, list_shadows, update_desired
from functions.shadow.forgetting import forget_shadows
from functions.shadow.rates import Rates
from functions.shadow.store import MAX_REMEMBERED_REQUESTS
from runtime import Message
from runtime.resource.postgres import open_pool
from tests.support.calls import STORED_AT_NS, Caller, stored
from tests.support.ingest import TOKEN, register

DEVICE = {"tenant_id": "test", "device_id": "dev1"}
BELOW = "downlinks.test.dev1.shadow."


@pytest.fixture
async def api(postgres_dsn: str) -> AsyncIterator[Caller]:
    pool = await open_pool(postgres_dsn, max_size=8)
    await register(pool)
    settings = ShadowSettings(rate_per_s=1000, burst=1000, max_named=3)
    yield Caller(pool, settings=settings, state=limits(pool, settings))
    await pool.close()


def limits(pool: Any, settings: ShadowSettings) -> Rates:
    """The rates of one host, which shares them when it is told to."""
    return settings.rates(PostgresStore(pool), structlog.stdlib.get_logger())


def ask(request: str, number: int, **fields: Any) -> Message:
    """A request with a client token of its own, as the MQTT listener stores it."""
    content = {"provision_token": TOKEN, "clientToken": f"c{number}", **fields}
    subject = f"shadow.test.dev1.{request}"
    return stored(subject, json.dumps(content).encode(), number, stream="SHADOW")


async def answers(api: Caller) -> list[tuple[str, dict[str, Any]]]:
    """What the device is sent since the last look: last levels of the topic, and the content."""
    rows = await api.pool.fetch("SELECT subject, body FROM delivery_outbox ORDER BY outbox_id")
    await api.pool.execute("DELETE FROM delivery_outbox")
    found = []
    for row in rows:
        subject = row["subject"]
        assert subject.startswith(BELOW)
        found.append((subject.removeprefix(BELOW), json.loads(row["body"])))
    return found


async def told(api: Caller, message: Message) -> dict[str, dict[str, Any]]:
    """The answers to one request; the request's place at the end of a subject is left out."""
    await api.deliver(answer_device, message)
    return {kind.removesuffix(f".{message.origin}"): body for kind, body in await answers(api)}


async def test_an_update_is_answered_with_what_was_accepted(api: Caller) -> None:
    state = {"desired": {"fan": 2}, "reported": {"fan": 1, "old": None}}
    found = await told(api, ask("update", 1, state=state))
    at_s = STORED_AT_NS // 10**9 + 1
    assert list(found) == ["update.accepted", "update.documents", "delta"]
    assert found["update.accepted"] == {
        "state": state,
        "metadata": {
            "desired": {"fan": {"timestamp": at_s}},
            "reported": {"fan": {"timestamp": at_s}},
        },
        "version": 1,
        "timestamp": at_s,
        "clientToken": "c1",
    }
    assert found["delta"]["state"] == {"fan": 2}
    assert found["update.documents"]["previous"]["version"] == 0
    # A report in the short form is an update, too.
    found = await told(api, ask("reported", 2, reported={"fan": 2}))
    assert list(found) == ["update.accepted", "update.documents"]
    assert found["update.documents"]["current"]["state"] == {
        "desired": {"fan": 2},
        "reported": {"fan": 2},
    }


async def test_a_question_is_answered_with_the_document(api: Caller) -> None:
    missing = await told(api, ask("get", 1))
    assert [(kind, body["code"]) for kind, body in missing.items()] == [("get.rejected", 404)]
    await told(api, ask("update", 2, state={"desired": {"a": {"b": 1}}, "reported": {"c": 1}}))
    [(kind, body)] = (await told(api, ask("get", 3))).items()
    assert kind == "get.accepted"
    assert body["state"] == {
        "desired": {"a": {"b": 1}},
        "reported": {"c": 1},
        "delta": {"a": {"b": 1}},
    }
    assert (body["version"], body["clientToken"]) == (1, "c3")
    # A question is no mistake, whatever its answer, and counts as done.
    counts = await api.pool.fetchrow(
        "SELECT sum(received) AS received, sum(written) AS written FROM message_count_changes"
    )
    assert tuple(counts or ()) == (3, 3)
    assert await api.pool.fetchval("SELECT count(*) FROM quarantine_events") == 0


async def test_a_device_deletes_its_shadow_and_the_version_goes_on(api: Caller) -> None:
    assert list(await told(api, ask("delete", 1))) == ["delete.rejected"]
    await told(api, ask("update", 2, state={"reported": {"a": 1}}))
    conflict = await told(api, ask("delete", 3, version=7))
    assert conflict["delete.rejected"]["code"] == 409
    gone = await told(api, ask("delete", 4, version=1))
    assert (gone["delete.accepted"]["version"], gone["delete.accepted"]["clientToken"]) == (2, "c4")
    assert await api.refuse(get_shadow, **DEVICE) == ("SHADOW_NOT_FOUND", 404)
    assert list(await told(api, ask("get", 5))) == ["get.rejected"]
    again = await told(api, ask("update", 6, state={"reported": {}}))
    assert again["update.accepted"]["version"] == 3
    assert (await api.ask(get_shadow, **DEVICE)).version == 3


REFUSED: list[tuple[str, dict[str, Any], int, str]] = [
    ("update", {"state": {"reported": {"a": [None]}}}, 400, "SHADOW_INVALID"),
    ("update", {}, 400, "SHADOW_INVALID"),
    ("get", {"version": -1}, 400, "SHADOW_INVALID"),
    ("delete", {"version": "x"}, 400, "SHADOW_INVALID"),
    ("update", {"state": {"reported": {}}, "version": 9}, 409, "VERSION_CONFLICT"),
]


@pytest.mark.parametrize(("request_kind", "fields", "code", "reason"), REFUSED, ids=str)
async def test_a_refused_request_is_answered_and_kept(
    api: Caller, request_kind: str, fields: dict[str, Any], code: int, reason: str
) -> None:
    found = await told(api, ask(request_kind, 1, **fields))
    body = found[f"{request_kind}.rejected"]
    assert (body["code"], body["clientToken"], len(found)) == (code, "c1", 1)
    assert await api.pool.fetchval("SELECT reason FROM quarantine_events") == reason


@pytest.mark.parametrize("form", ["", "name.n."])
async def test_a_refused_update_makes_no_shadow(api: Caller, form: str) -> None:
    large = {"reported": {f"k{number}": "x" * 1000 for number in range(7)}}
    for number, fields in enumerate(({"state": {"reported": {}}, "version": 9}, {}), start=1):
        assert f"{form}update.rejected" in await told(api, ask(f"{form}update", number, **fields))
    assert await api.pool.fetchval("SELECT count(*) FROM device_shadows") == 0
    assert f"{form}update.accepted" in await told(api, ask(f"{form}update", 3, state=large))
    conflict = await told(api, ask(f"{form}update", 4, state=large, version=9))
    assert conflict[f"{form}update.rejected"]["code"] == 409
    assert await api.pool.fetchval("SELECT version FROM device_shadows") == 1


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b'{"clientToken":"c"}',
        b'{"clientToken":"c","provision_token":"guess"}',
        b'{"clientToken":"c","provision_token":"tok","tenant_id":"other"}',
    ],
)
@pytest.mark.parametrize("request_kind", ["update", "get", "delete"])
async def test_who_proves_nothing_is_told_nothing(
    api: Caller, request_kind: str, content: bytes
) -> None:
    await api.deliver(answer_device, ask("update", 1, state={"reported": {"secret": 1}}))
    await answers(api)
    message = stored(f"shadow.test.dev1.{request_kind}", content, 2, stream="SHADOW")
    await api.deliver(answer_device, message)
    assert await answers(api) == []
    assert (await api.ask(get_shadow, **DEVICE)).version == 1


async def test_shadows_with_names_are_apart(api: Caller) -> None:
    found = await told(api, ask("name.config.update", 1, state={"desired": {"a": 1}}))
    assert list(found) == [
        "name.config.update.accepted",
        "name.config.update.documents",
        "name.config.delta",
    ]
    await told(api, ask("name.net:1.reported", 2, reported={"a": 2}))
    await told(api, ask("reported", 3, reported={"a": 3}))
    shown = {
        name: (await api.ask(get_shadow, **DEVICE, name=name)).state.reported
        for name in ("", "config", "net:1")
    }
    assert shown == {"": {"a": 3}, "config": {}, "net:1": {"a": 2}}
    listed = (await api.ask(list_shadows, **DEVICE)).items
    assert [(each.name, each.version) for each in listed] == [("", 1), ("config", 1), ("net:1", 1)]
    changed = await api.ask(update_desired, **DEVICE, name="net:1", state={"desired": {"a": 9}})
    assert (changed.name, changed.version, changed.state.delta) == ("net:1", 2, {"a": 9})
    kinds = [kind for kind, _ in await answers(api)]
    assert [kind.partition(".api-")[0] for kind in kinds] == [
        "name.net:1.update.accepted",
        "name.net:1.update.documents",
        "name.net:1.delta",
    ]
    assert (await api.ask(delete_shadow, **DEVICE, name="net:1")).version == 3
    [(kind, _)] = await answers(api)
    assert kind.startswith("name.net:1.delete.accepted.api-")
    assert [each.name for each in (await api.ask(list_shadows, **DEVICE)).items] == ["", "config"]


async def test_a_device_has_a_bounded_number_of_shadows(api: Caller) -> None:
    made = [ask(f"name.n{n}.reported", n, reported={"n": n}) for n in range(1, 7)]
    await asyncio.gather(*(api.deliver(answer_device, each) for each in made))
    found = await answers(api)
    assert [body["code"] for kind, body in found if ".update.rejected." in kind] == [409] * 3
    count = await api.pool.fetchval("SELECT count(*) FROM device_shadows")
    assert count == 3
    state = {"desired": {"a": 1}}
    refused = await api.refuse(update_desired, **DEVICE, name="other", state=state)
    assert refused == ("TOO_MANY_SHADOWS", 409)
    # The one without a name always has its place.
    assert (await api.ask(update_desired, **DEVICE, state=state)).version == 1


async def test_a_deleted_name_is_free_again_when_it_is_forgotten(api: Caller) -> None:
    for number, name in enumerate(("a", "b", "c", "a"), start=1):
        await told(api, ask(f"name.{name}.reported", number, reported={}))
    await told(api, ask("reported", 5, reported={}))
    for number, request in enumerate(("name.a.delete", "delete"), start=6):
        await told(api, ask(request, number))
    await forget_shadows(api.context())
    assert "name.d.update.rejected" in await told(api, ask("name.d.reported", 8, reported={}))
    await api.pool.execute("UPDATE device_shadows SET deleted_at = deleted_at - interval '8 d'")
    await forget_shadows(api.context())
    rows = await api.pool.fetch("SELECT name, version FROM device_shadows ORDER BY name")
    assert [tuple(row) for row in rows] == [("", 2), ("b", 1), ("c", 1)]
    assert "name.d.update.accepted" in await told(api, ask("name.d.reported", 9, reported={}))


async def test_a_repeated_request_changes_nothing_and_is_not_answered_again(api: Caller) -> None:
    """Its answers were committed together with its effect."""
    requests = [
        ask("update", 1, state={"desired": {"a": 1}}),
        ask("get", 2),
        ask("update", 3, state={"desired": {"a": 2}}, version=9),
        ask("delete", 4),
    ]
    for message in requests:
        await api.deliver(answer_device, message)
    assert len(await answers(api)) == 6
    for message in requests:
        await api.deliver(answer_device, replace(message, attempt=2))
        # As it is delivered when the host does not know that it is a repeat.
        await api.deliver(answer_device, message)
    assert await answers(api) == []
    counts = await api.pool.fetchrow(
        "SELECT sum(received), sum(written), sum(quarantined), sum(duplicate)"
        " FROM message_count_changes"
    )
    assert tuple(counts or ()) == (12, 3, 1, 8)


async def test_the_same_request_twice_at_a_time_counts_once(api: Caller) -> None:
    for number in range(1, 6):
        message = ask("update", number, state={"reported": {"n": number}})
        await asyncio.gather(*(api.deliver(answer_device, message) for _ in range(5)))
    assert (await api.ask(get_shadow, **DEVICE)).version == 5
    assert len(await answers(api)) == 10


async def test_a_device_that_asks_too_often_is_refused_and_told_sometimes(api: Caller) -> None:
    api.settings = ShadowSettings(rate_per_s=1, burst=3)
    api.state = limits(api.pool, api.settings)
    await register(api.pool, device="dev2")
    flood = [replace(ask("get", 1), sequence=n) for n in range(1, 31)]
    for message in flood:
        await api.deliver(answer_device, message)
    codes = [body["code"] for _, body in await answers(api)]
    assert codes == [404] * 3 + [429] * 5
    reasons = await api.pool.fetch("SELECT DISTINCT reason FROM quarantine_events")
    assert [row["reason"] for row in reasons] == ["RATE_LIMITED"]
    # Another device is not concerned, and this one again after its second.
    other = replace(ask("get", 1), subject="shadow.test.dev2.get", sequence=40)
    await api.deliver(answer_device, other)
    rows = await api.pool.fetch("DELETE FROM delivery_outbox RETURNING subject")
    assert len(rows) == 1
    later = await told(api, ask("get", 50))
    assert list(later) == ["get.rejected"]
    assert later["get.rejected"]["code"] == 404


async def test_a_tenant_pays_for_the_size_of_its_documents(api: Caller) -> None:
    api.settings = ShadowSettings(tenant_bytes_per_s=1000, tenant_burst_bytes=30_000)
    api.state = limits(api.pool, api.settings)
    await register(api.pool, device="dev2")
    await register(api.pool, tenant="other")
    large = {"reported": {f"k{number}": "x" * 1000 for number in range(7)}}
    for number in range(1, 4):
        await api.deliver(answer_device, replace(ask("update", 1, state=large), sequence=number))
    # The first is answered with 14 KB, the second reads 7 KB and is answered with 21 KB.
    assert (await api.ask(get_shadow, **DEVICE)).version == 2
    others = {"shadow.test.dev2.get": 429, "shadow.other.dev1.get": 404}
    await answers(api)
    for number, subject in enumerate(others, start=4):
        await api.deliver(answer_device, replace(ask("get", 1), subject=subject, sequence=number))
    rows = await api.pool.fetch("DELETE FROM delivery_outbox RETURNING body")
    assert [json.loads(row["body"])["code"] for row in rows] == list(others.values())
    # It has paid when the bytes beyond the burst have been given out again.
    assert list(await told(api, ask("get", 20))) == ["get.accepted"]


async def test_what_was_moved_aside_in_a_flood_has_a_rate_too(api: Caller) -> None:
    api.settings = ShadowSettings(rate_per_s=1, burst=3)
    api.state = limits(api.pool, api.settings)
    codes = []
    for number in range(1, 41):
        # Newer ones come in between; the others are a minute old, as the flood lasts.
        is_aside = number % 2 == 0
        moved = replace(ask("get", 60), sequence=number, called_before=is_aside)
        at_ns = moved.stored_at_ns - (60 * 10**9 if is_aside else 0)
        await api.deliver(answer_device, replace(moved, stored_at_ns=at_ns + number))
        codes += [body["code"] for _, body in await answers(api)]
    # Of both kinds three, and five rejections.
    assert (codes.count(404), codes.count(429)) == (6, 10)
    reasons = await api.pool.fetch("SELECT reason FROM quarantine_events")
    assert [row["reason"] for row in reasons] == ["RATE_LIMITED"] * 34


async def test_a_tenant_pays_for_documents_of_refused_requests(api: Caller) -> None:
    large = {"reported": {f"k{number}": "x" * 1000 for number in range(7)}}
    await told(api, ask("update", 1, state=large))
    api.settings = ShadowSettings(tenant_bytes_per_s=1000, tenant_burst_bytes=20_000)
    api.state = limits(api.pool, api.settings)
    conflicts = [replace(ask("update", 1, state=large, version=7), sequence=n) for n in range(2, 6)]
    codes = []
    for message in conflicts:
        codes += [body["code"] for body in (await told(api, message)).values()]
    assert codes == [409, 409, 409, 429]


async def test_nobody_uses_up_the_rate_of_a_device(api: Caller) -> None:
    api.settings = ShadowSettings(rate_per_s=1, burst=1)
    api.state = limits(api.pool, api.settings)
    for number in range(1, 20):
        await api.deliver(answer_device, ask("get", number, provision_token="guess"))
    assert list(await told(api, ask("get", 20))) == ["get.rejected"]
    # What is delivered again takes no second token.
    await api.deliver(answer_device, replace(ask("get", 20), sequence=21, attempt=2))
    assert [body["code"] for _, body in await answers(api)] == [404]


async def test_hosts_keep_the_rate_of_a_device_together(api: Caller) -> None:
    settings = ShadowSettings(rate_per_s=1, burst=10)
    hosts = [limits(api.pool, settings) for _ in range(2)]
    api.settings = settings
    # Hosts share what they take of messages of now; this now lasts as long as the test.
    now_ns = time.time_ns() + 600 * 10**9
    numbers = itertools.count(1)

    async def ask_both(requests: int) -> int:
        """How many of so many requests to each host are answered."""
        for host in hosts:
            api.state = host
            for _ in range(requests):
                message = replace(ask("get", 1), sequence=next(numbers), stored_at_ns=now_ns)
                await api.deliver(answer_device, message)
        return [body["code"] for _, body in await answers(api)].count(404)

    async def share() -> None:
        for host in (*hosts, *hosts):
            await host.sharing.share()

    await share()
    # At once each host has the whole burst; what they gave out too much is a debt.
    assert await ask_both(8) == 16
    await share()
    assert await ask_both(2) <= 2
    await share()
    assert await ask_both(8) == 0


async def test_a_device_keeps_a_bounded_number_of_notes(api: Caller) -> None:
    await api.pool.execute(
        "INSERT INTO device_shadow_requests (tenant_id, device_id, stored_at_ns, sequence)"
        " SELECT 'test', 'dev1', $1::bigint + n, n FROM generate_series(1, 3000) AS n",
        STORED_AT_NS,
    )
    await told(api, ask("get", 5000))
    kept = await api.pool.fetchval("SELECT count(*) FROM device_shadow_requests")
    assert kept == MAX_REMEMBERED_REQUESTS


async def test_what_is_deleted_with_its_device_leaves_nothing(api: Caller) -> None:
    await told(api, ask("reported", 1, reported={"a": 1}))
    await told(api, ask("name.x.reported", 2, reported={"a": 1}))
    await api.pool.execute("DELETE FROM device_registry")
    for table in ("device_shadows", "device_shadow_requests"):
        assert await api.pool.fetchval(f"SELECT count(*) FROM {table}") == 0  # noqa: S608


async def test_a_list_of_no_device_is_not_found(api: Caller) -> None:
    assert (await api.ask(list_shadows, **DEVICE)).items == []
    missing = {"tenant_id": "test", "device_id": "nobody"}
    assert await api.refuse(list_shadows, **missing) == ("DEVICE_NOT_FOUND", 404)
