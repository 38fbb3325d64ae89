"""Device ingest over HTTP stores nothing for a sender who does not prove to be the device."""

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import httpx
import pytest

from runtime.broker.connection import Broker
from runtime.resource.postgres import open_pool
from tests.support.gateway import (
    JSON,
    PROVE_DEVICES,
    WATCH_REGISTRY,
    Gateway,
    count_stored,
    make_streams,
    run_gateway,
)
from tests.support.host import eventually, running_host
from tests.support.ingest import TOKEN, register
from tests.support.servers import NatsServer

PATH = "/ingest/v1/tenant/test/device/dev1/telemetry"
PROXY = "127.0.0.0/8"
REGISTRY = {"prove_devices": PROVE_DEVICES}


@pytest.fixture
async def pool(postgres_dsn: str) -> AsyncIterator["asyncpg.Pool[asyncpg.Record]"]:
    opened = await open_pool(postgres_dsn, max_size=2)
    await register(opened)
    yield opened
    await opened.close()


@asynccontextmanager
async def serving(
    nats_server: NatsServer, broker: Broker, dsn: str, **settings: Any
) -> AsyncIterator[Gateway]:
    async with (
        make_streams(broker),
        running_host(nats_server.url, REGISTRY, database_url=dsn),
        run_gateway(
            broker,
            **{"require_token": True, "trusted_proxies": PROXY, "token_cache_s": 0.05, **settings},
        ) as gateway,
    ):
        yield gateway


async def send(
    gateway: Gateway, token: str | None, *, path: str = PATH, source: str = "192.0.2.1", n: int = 0
) -> httpx.Response:
    headers = {"X-Forwarded-For": source}
    if token is not None:
        headers["X-Provision-Token"] = token
    return await gateway.client.post(path, json={"site_id": "s1", "n": n}, headers=headers)


async def test_only_the_device_itself_gets_anything_stored(
    nats_server: NatsServer,
    broker: Broker,
    postgres_dsn: str,
    pool: "asyncpg.Pool[asyncpg.Record]",
) -> None:
    await register(pool, device="revoked")
    await register(pool, device="tokenless")
    await pool.execute("UPDATE device_registry SET status = 'REVOKED' WHERE device_id = 'revoked'")
    await pool.execute(
        "UPDATE device_registry SET provision_token_hash = NULL WHERE device_id = 'tokenless'"
    )
    async with serving(nats_server, broker, postgres_dsn) as gateway:
        accepted = await send(gateway, TOKEN)
        in_body = await gateway.client.post(PATH, json={"provision_token": TOKEN})
        assert (accepted.status_code, in_body.status_code) == (202, 202)
        refused = {
            name: await send(gateway, token, path=PATH.replace("dev1", device))
            for name, device, token in [
                ("no token", "dev1", None),
                ("empty", "dev1", ""),
                ("wrong", "dev1", "guessed"),
                ("unknown", "dev9", TOKEN),
                ("tokenless", "tokenless", TOKEN),
                ("revoked, guessed", "revoked", "guessed"),
                ("revoked", "revoked", TOKEN),
            ]
        }
        found = {n: (r.status_code, r.json()["code"]) for n, r in refused.items()}
        not_text = await gateway.client.post(PATH, json={"provision_token": 7})
        # What parsers disagree about is looked for in the messages of devices alone.
        twice = b'{"a":1,"a":2,"provision_token":"%b"}'
        told = [
            (await gateway.client.post(PATH, content=twice % token, headers=JSON)).json()["code"]
            for token in (b"guess", TOKEN.encode())
        ]
        assert told == ["TOKEN_INVALID", "INVALID_JSON"]
        assert await count_stored(broker) == {"TELEMETRY": 2}
        assert "guessed" not in gateway.lines.text + refused["wrong"].text
    assert found == {
        "no token": (401, "TOKEN_MISSING"),
        "empty": (401, "TOKEN_MISSING"),
        "wrong": (403, "TOKEN_INVALID"),
        "unknown": (403, "TOKEN_INVALID"),
        "tokenless": (403, "TOKEN_INVALID"),
        "revoked, guessed": (403, "TOKEN_INVALID"),
        "revoked": (403, "DEVICE_REVOKED"),
    }
    assert not_text.status_code == 401
    assert refused["no token"].headers["www-authenticate"] == 'ProvisionToken realm="devices"'
    # A wrong token says nothing about which devices there are.
    details = {refused[n].json()["detail"] for n in ("wrong", "unknown", "revoked, guessed")}
    assert len(details) == 1


async def test_a_flood_of_the_unproven_delays_and_refuses_no_device(
    nats_server: NatsServer, broker: Broker, postgres_dsn: str, pool: "asyncpg.Pool[Any]"
) -> None:
    async with serving(nats_server, broker, postgres_dsn) as gateway:
        assert (await send(gateway, TOKEN)).status_code == 202

        async def flood() -> Counter[int]:
            answers = await asyncio.gather(
                *(send(gateway, None if n % 2 else f"guess {n}") for n in range(250))
            )
            return Counter(answer.status_code for answer in answers)

        # From the device's own address too: the token has passed from there before.
        flooding = asyncio.create_task(flood())
        healthy = await asyncio.gather(
            *(send(gateway, TOKEN, n=n) for n in range(15)),
            *(send(gateway, TOKEN, n=n, source="198.51.100.7") for n in range(15)),
        )
        attacked = await flooding
        assert [answer.status_code for answer in healthy] == [202] * 30
        assert attacked[401] + attacked[403] == 10
        assert attacked[429] == 240
        assert await count_stored(broker) == {"TELEMETRY": 31}
        await gateway.lines.wait(
            "Requests are refused, as they do not prove an identity.",
            identity="device",
            last_source="192.0.2.1",
        )


async def test_after_ten_guesses_an_address_is_not_told_that_the_next_one_is_right(
    nats_server: NatsServer, broker: Broker, postgres_dsn: str, pool: "asyncpg.Pool[Any]"
) -> None:
    async with serving(nats_server, broker, postgres_dsn) as gateway:
        guessed = [(await send(gateway, f"guess {n}")).status_code for n in range(10)]
        right = await send(gateway, TOKEN)
        elsewhere = await send(gateway, TOKEN, source="198.51.100.7")
    assert guessed == [403] * 10
    assert (right.status_code, right.json()["code"]) == (429, "TOO_MANY_ATTEMPTS")
    assert (right.headers["retry-after"], right.headers["connection"]) == ("10", "close")
    assert elsewhere.status_code == 202


async def test_guesses_for_many_devices_are_limited_by_address(
    nats_server: NatsServer, broker: Broker, postgres_dsn: str, pool: "asyncpg.Pool[Any]"
) -> None:
    async with serving(nats_server, broker, postgres_dsn) as gateway:
        # What has passed from an address passes from there again.
        assert (await send(gateway, TOKEN, source="2001:db8::1")).status_code == 202
        sprayed = Counter(
            [
                (
                    await send(
                        gateway,
                        "password",
                        path=PATH.replace("dev1", f"dev{n}"),
                        source=f"2001:db8::{n}",
                    )
                ).status_code
                for n in range(2, 102)
            ]
        )
        healthy = await send(gateway, TOKEN, source="2001:db8::1")
    assert 60 <= sprayed[403] < 100
    assert sprayed[403] + sprayed[429] == 100
    assert healthy.status_code == 202


async def test_a_revocation_and_a_new_token_reach_the_door(
    nats_server: NatsServer,
    broker: Broker,
    postgres_dsn: str,
    pool: "asyncpg.Pool[asyncpg.Record]",
) -> None:
    async with serving(nats_server, broker, postgres_dsn) as gateway:
        assert (await send(gateway, TOKEN)).status_code == 202
        new = hashlib.sha256(b"new").digest()
        await pool.execute("UPDATE device_registry SET provision_token_hash = $1", new)

        async def old_is_refused() -> bool:
            return (await send(gateway, TOKEN)).status_code == 403

        await eventually(old_is_refused, "the refusal of the old token")
        assert (await send(gateway, "new")).status_code == 202
        await pool.execute("UPDATE device_registry SET status = 'REVOKED'")

        async def is_revoked() -> bool:
            answer = await send(gateway, "new")
            return answer.status_code == 403 and answer.json()["code"] == "DEVICE_REVOKED"

        await eventually(is_revoked, "the refusal of the revoked device")


@pytest.mark.parametrize(
    "change",
    [
        ("UPDATE device_registry SET status = 'REVOKED'", "DEVICE_REVOKED"),
        ("UPDATE device_registry SET provision_token_hash = sha256('new')", "TOKEN_INVALID"),
        ("UPDATE tenants SET status = 'ERASING'", "DEVICE_REVOKED"),
        ("DELETE FROM tenants", "TOKEN_INVALID"),
    ],
)
async def test_a_gateway_that_hears_of_a_change_does_not_wait_for_its_cache(
    nats_server: NatsServer,
    broker: Broker,
    postgres_dsn: str,
    pool: "asyncpg.Pool[asyncpg.Record]",
    change: tuple[str, str],
) -> None:
    statement, code = change
    watched = {**REGISTRY, "watch_registry": WATCH_REGISTRY}
    async with (
        make_streams(broker),
        running_host(nats_server.url, watched, database_url=postgres_dsn),
        run_gateway(
            broker, require_token=True, trusted_proxies=PROXY, token_cache_s=300
        ) as gateway,
    ):
        assert (await send(gateway, TOKEN)).status_code == 202
        await pool.execute(statement)

        async def is_refused() -> Any:
            answer = await send(gateway, TOKEN)
            return answer.json() if answer.status_code == 403 else None

        # The cache alone would serve the device for five minutes.
        assert (await eventually(is_refused, "the refusal", 60))["code"] == code


async def test_while_the_registry_is_away_known_devices_are_served_and_others_told_to_wait(
    nats_server: NatsServer, broker: Broker, postgres_dsn: str, pool: "asyncpg.Pool[Any]"
) -> None:
    settings: dict[str, Any] = {"require_token": True, "token_cache_s": 0}
    async with make_streams(broker), run_gateway(broker, **settings) as gateway:
        async with running_host(nats_server.url, REGISTRY, database_url=postgres_dsn):
            assert (await send(gateway, TOKEN)).status_code == 202
            assert (await send(gateway, "guess")).status_code == 403
        known = await send(gateway, TOKEN)
        unknown = await send(gateway, "guess")
        assert await count_stored(broker) == {"TELEMETRY": 2}
    assert known.status_code == 202
    assert (unknown.status_code, unknown.json()["code"]) == (503, "REGISTRY_UNAVAILABLE")
    assert unknown.headers["retry-after"] == "5"


async def test_a_batch_is_proved_once_and_counts_each_message_against_the_rates(
    nats_server: NatsServer, broker: Broker, postgres_dsn: str, pool: "asyncpg.Pool[Any]"
) -> None:
    await register(pool, device="dev2")
    rates: dict[str, Any] = {"device_rate_per_s": 0.001, "device_burst": 3}
    rates |= {"tenant_rate_per_s": 0.001, "tenant_burst": 5}

    async def post(path: str, token: str | None, *items: dict[str, Any]) -> httpx.Response:
        headers = {} if token is None else {"X-Provision-Token": token}
        return await gateway.client.post(f"{path}/batch", json=items, headers=headers)

    async with serving(nats_server, broker, postgres_dsn, **rates) as gateway:
        other = PATH.replace("dev1", "dev2")
        refused = [
            (await post(PATH, token, {"provision_token": TOKEN})).status_code
            for token in (None, "wrong")
        ]
        own = await post(PATH, TOKEN, {}, {"provision_token": "wrong"}, {"n": 1}, {"n": 2}, {})
        assert (await send(gateway, TOKEN)).json()["code"] == "RATE_LIMITED"
        shared = await post(other, TOKEN, {}, {}, {})
        stored = await count_stored(broker)
    assert refused == [401, 403]
    assert [item.get("code") for item in own.json()["items"]] == [
        *(None, "TOKEN_INVALID", None, None, "RATE_LIMITED"),
    ]
    assert [item.get("code") for item in shared.json()["items"]] == [
        *(None, None, "TENANT_RATE_LIMITED"),
    ]
    assert stored == {"TELEMETRY": 5}
