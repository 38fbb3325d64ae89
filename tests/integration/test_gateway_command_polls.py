"""Devices get their commands over HTTP, at once when there is one, and lose none."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from runtime.broker.connection import Broker
from runtime.resource.postgres import open_pool
from tests.support.gateway import PROVE_DEVICES, Gateway, make_streams, run_gateway
from tests.support.host import running_host
from tests.support.ingest import TOKEN, register
from tests.support.servers import NatsServer

DEVICE = "/ingest/v1/tenant/test/device/dev1"
PATH = f"{DEVICE}/commands"
AUTH = {"X-Provision-Token": TOKEN}
FUNCTIONS = {
    "prove_devices": PROVE_DEVICES,
    "poll_commands": {
        "handler": "functions.commands.polling:poll_commands",
        "endpoint": {"service": "management", "subject": "management.commands.poll"},
        "uses": ["postgres"],
        "concurrency": 50,
    },
}


@pytest.fixture
async def pool(postgres_dsn: str) -> AsyncIterator[Any]:
    opened = await open_pool(postgres_dsn, max_size=2)
    await register(opened)
    await register(opened, device="dev2")
    yield opened
    await opened.close()


@asynccontextmanager
async def serving(
    nats_server: NatsServer, broker: Broker, dsn: str, **settings: Any
) -> AsyncIterator[Gateway]:
    async with (
        make_streams(broker),
        running_host(nats_server.url, FUNCTIONS, database_url=dsn),
        run_gateway(broker, require_token=True, **settings) as gateway,
    ):
        yield gateway


async def store(pool: Any, command_id: str, *, device: str = "dev1", **columns: Any) -> None:
    fields = {"status": "queued", "expires_in_s": 60, **columns}
    await pool.execute(
        "INSERT INTO device_commands"
        " (command_id, tenant_id, device_id, name, arguments, status, sent_at, expires_at,"
        " timeout_s, finished_at, in_order) VALUES ($1, 'test', $2, 'reboot', $3::text::jsonb, $4,"
        " CASE $4 WHEN 'queued' THEN NULL ELSE now() END, now() + make_interval(secs => $5), 300,"
        " CASE $4 WHEN 'cancelled' THEN now() END, $6)",
        command_id,
        device,
        fields.get("arguments", '{"n": 1}'),
        fields["status"],
        float(fields["expires_in_s"]),
        fields.get("in_order", False),
    )


async def poll(gateway: Gateway, query: str = "", *, path: str = PATH) -> httpx.Response:
    return await gateway.client.get(f"{path}?{query}" if query else path, headers=AUTH)


def ids(answer: httpx.Response) -> list[str]:
    return [command["command_id"] for command in answer.json()["commands"]]


async def waiting(gateway: Gateway, query: str = "ttd=60", **request: Any) -> Any:
    """A poll that has no answer yet."""
    task = asyncio.create_task(poll(gateway, query, **request))
    await asyncio.wait({task}, timeout=0.3)
    assert not task.done()
    return task


async def test_open_commands_are_shown_until_they_are_answered(
    nats_server: NatsServer, broker: Broker, postgres_dsn: str, pool: Any
) -> None:
    async with serving(nats_server, broker, postgres_dsn) as gateway:
        assert (await poll(gateway)).status_code == 204
        await store(pool, "c1")
        await store(pool, "c2", status="sent")
        others: dict[str, dict[str, Any]] = {
            "expired": {"expires_in_s": -1},
            "acked": {"status": "acked"},
            "cancelled": {"status": "cancelled"},
            "other": {"device": "dev2"},
        }
        for command_id, columns in others.items():
            await store(pool, command_id, **columns)
        first = await poll(gateway)
        again = await poll(gateway, "ttd=60")
        rest = await poll(gateway, "known=c1,never-seen")
        assert (await poll(gateway, "known=c1,c2")).status_code == 204
        marked = await pool.fetchval("SELECT status FROM device_commands WHERE command_id = 'c1'")
    assert first.status_code == 200
    assert first.headers["cache-control"] == "no-store"
    assert (ids(first), ids(again), ids(rest)) == (["c1", "c2"], ["c1", "c2"], ["c2"])
    command = first.json()["commands"][0]
    assert command.keys() == {"command_id", "name", "arguments", "expires_at", "timeout_s"}
    assert command["arguments"] == {"n": 1}
    assert marked == "sent"


async def test_in_order_a_command_is_shown_when_those_before_it_have_ended(
    nats_server: NatsServer, broker: Broker, postgres_dsn: str, pool: Any
) -> None:
    async with serving(nats_server, broker, postgres_dsn) as gateway:
        await store(pool, "c1", in_order=True)
        await store(pool, "c2", in_order=True)
        await store(pool, "free")
        first = await poll(gateway)
        await pool.execute(
            "UPDATE device_commands SET status = 'succeeded', finished_at = now()"
            " WHERE command_id = 'c1'"
        )
        second = await poll(gateway)
    assert (ids(first), ids(second)) == (["c1", "free"], ["c2", "free"])


async def test_a_waiting_device_is_answered_when_its_command_is_stored(
    nats_server: NatsServer, broker: Broker, postgres_dsn: str, pool: Any
) -> None:
    # One place: a poll that waits takes none.
    async with serving(nats_server, broker, postgres_dsn, max_concurrent=1) as gateway:
        task = await waiting(gateway)
        posted = await gateway.client.post(f"{DEVICE}/telemetry", json={}, headers=AUTH)
        assert posted.status_code == 202
        await store(pool, "theirs", device="dev2")
        await store(pool, "mine")
        assert ids(await asyncio.wait_for(task, 20)) == ["mine"]
        # Far sooner than the question that waited would have come to its end.
        after = await gateway.client.post(f"{DEVICE}/telemetry?ttd=60", json={}, headers=AUTH)
        assert after.status_code == 202
        assert [each["command_id"] for each in after.json()["commands"]] == ["mine"]


async def test_a_device_waits_after_its_message_too(
    nats_server: NatsServer, broker: Broker, postgres_dsn: str, pool: Any
) -> None:
    async with serving(nats_server, broker, postgres_dsn) as gateway:
        short = await gateway.client.post(f"{DEVICE}/telemetry?ttd=1", json={}, headers=AUTH)
        assert (short.status_code, short.json()["commands"]) == (202, [])
        long = gateway.client.post(f"{DEVICE}/telemetry?ttd=60", json={}, headers=AUTH)
        task = asyncio.create_task(long)
        await asyncio.wait({task}, timeout=0.3)
        await store(pool, "c1")
        answer = await asyncio.wait_for(task, 20)
    assert (answer.status_code, answer.json()["sequence"]) == (202, 2)
    assert ids(answer) == ["c1"]


async def test_a_device_that_asks_again_ends_its_earlier_poll_and_others_wait_on(
    nats_server: NatsServer, broker: Broker, postgres_dsn: str, pool: Any
) -> None:
    await register(pool, device="dev3")
    async with serving(nats_server, broker, postgres_dsn, max_polls=2) as gateway:
        other = await waiting(gateway, path=PATH.replace("dev1", "dev2"))
        first = await waiting(gateway)
        second = await waiting(gateway)
        assert (await asyncio.wait_for(first, 20)).status_code == 204
        refused = await poll(gateway, "ttd=60", path=PATH.replace("dev1", "dev3"))
        assert (refused.status_code, refused.json()["code"]) == (503, "TOO_MANY_POLLS")
        assert not other.done()
        # A host that stops lets nobody wait.
        gateway.stopping.set()
        for task in (other, second):
            assert (await asyncio.wait_for(task, 20)).status_code == 204


async def test_a_device_that_goes_away_gives_its_place_to_another_and_loses_nothing(
    nats_server: NatsServer, broker: Broker, postgres_dsn: str, pool: Any
) -> None:
    async with serving(nats_server, broker, postgres_dsn, max_polls=1) as gateway:
        head = (
            f"GET {PATH}?ttd=60 HTTP/1.1\r\nHost: localhost\r\nX-Provision-Token: {TOKEN}\r\n\r\n"
        )
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(head.encode())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 1)
        await asyncio.wait_for(_until_full(gateway), 20)
        writer.close()
        await asyncio.wait_for(_until_free(gateway), 20)
        await store(pool, "c1")
        assert ids(await poll(gateway)) == ["c1"]


async def test_a_tenant_with_many_polls_gives_one_to_a_tenant_with_fewer(
    nats_server: NatsServer, broker: Broker, postgres_dsn: str, pool: Any
) -> None:
    await register(pool, tenant="other")
    of_other = PATH.replace("/test/", "/other/")
    async with serving(nats_server, broker, postgres_dsn, max_polls=2) as gateway:
        of_dev1 = await waiting(gateway)
        of_dev2 = await waiting(gateway, path=PATH.replace("dev1", "dev2"))
        other = await waiting(gateway, path=of_other)
        assert (await asyncio.wait_for(of_dev1, 20)).status_code == 204
        refused = await poll(gateway, "ttd=1")
        assert (refused.status_code, refused.json()["code"]) == (503, "TOO_MANY_POLLS")
        assert not of_dev2.done()
        assert not other.done()
        await store(pool, "c1", device="dev2")
        assert ids(await asyncio.wait_for(of_dev2, 20)) == ["c1"]
        other.cancel()


async def _until_full(gateway: Gateway) -> None:
    while (await poll(gateway, "ttd=1", path=PATH.replace("dev1", "dev2"))).status_code != 503:
        pass


async def _until_free(gateway: Gateway) -> None:
    while (await poll(gateway, "ttd=1", path=PATH.replace("dev1", "dev2"))).status_code == 503:
        pass


@pytest.mark.parametrize(
    "query",
    [
        "ttd=61",
        "ttd=-1",
        "ttd=1.5",
        "ttd=",
        "ttd=9" + "9" * 5000,
        "ttd=%D9%A1",
        "ttd=1&ttd=2",
        "known=a%20b",
        "known=" + ",".join(["c"] * 51),
        "wait=1",
        "ttd",
        "ttd=1&known=a&x=1",
    ],
)
async def test_a_query_that_is_none_is_refused(broker: Broker, query: str) -> None:
    async with run_gateway(broker, require_token=True) as gateway:
        answer = await poll(gateway, query)
        assert (answer.status_code, answer.json()["code"]) == (400, "MALFORMED_QUERY")
        if "ttd=" in query:
            posted = await gateway.client.post(f"{DEVICE}/telemetry?{query}", json={})
            assert posted.status_code == 400


async def test_only_the_device_itself_may_read_its_commands(
    nats_server: NatsServer, broker: Broker, postgres_dsn: str, pool: Any
) -> None:
    await store(pool, "c1")
    async with serving(nats_server, broker, postgres_dsn) as gateway:
        nameless = await gateway.client.get(PATH)
        wrong = await gateway.client.get(PATH, headers={"X-Provision-Token": "guess"})
        other = await poll(gateway, path=PATH.replace("dev1", "dev2").replace("dev2", "dev9"))
    assert [nameless.status_code, wrong.status_code, other.status_code] == [401, 403, 403]
    async with make_streams(broker), run_gateway(broker) as gateway:
        assert (await poll(gateway)).json()["code"] == "FORBIDDEN"


async def test_a_message_is_answered_when_nobody_can_read_commands(
    nats_server: NatsServer, broker: Broker, postgres_dsn: str, pool: Any
) -> None:
    only_proofs = {"prove_devices": FUNCTIONS["prove_devices"]}
    async with (
        make_streams(broker),
        running_host(nats_server.url, only_proofs, database_url=postgres_dsn),
        run_gateway(broker, require_token=True) as gateway,
    ):
        asked = await poll(gateway, "ttd=60")
        posted = await gateway.client.post(f"{DEVICE}/telemetry?ttd=60", json={}, headers=AUTH)
        await gateway.lines.wait(
            "Devices are answered without their commands, which stay open.", level="warning"
        )
    assert (asked.status_code, asked.json()["code"]) == (503, "COMMANDS_UNAVAILABLE")
    assert (posted.status_code, posted.json()["commands"]) == (202, [])
