"""What a device with credentials, or a client without, can do to nats-server's MQTT listener."""

from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from runtime.resource.postgres import open_pool
from tests.support.device_auth import serving
from tests.support.ingest import TOKEN, register
from tests.support.raw_mqtt import ACCEPTED, NOT_AUTHORIZED, log_in
from tests.support.servers import NatsServer


@pytest.fixture
async def pool(postgres_dsn: str) -> AsyncIterator[Any]:
    opened = await open_pool(postgres_dsn, max_size=2)
    for device in ("dev1", "dev2"):
        await register(opened, device=device)
    yield opened
    await opened.close()


async def spray(port: int) -> Counter[int | None]:
    """One password for many devices."""
    return Counter([await log_in(port, f"test/x{number}", "password") for number in range(70)])


async def test_who_guesses_for_many_devices_is_limited_by_address(
    nats_server: NatsServer, postgres_dsn: str, pool: Any
) -> None:
    port = nats_server.mqtt_port
    async with serving(nats_server, postgres_dsn, shared_networks=""):
        assert await log_in(port, "test/dev1", TOKEN) == ACCEPTED
        assert await spray(port) == {NOT_AUTHORIZED: 70}

        assert await log_in(port, "test/dev1", TOKEN) == ACCEPTED
        assert await log_in(port, "test/dev2", TOKEN, source="127.0.0.2") == ACCEPTED


async def test_who_guesses_behind_a_proxy_locks_nobody_out(
    nats_server: NatsServer, postgres_dsn: str, pool: Any
) -> None:
    port = nats_server.mqtt_port
    async with serving(nats_server, postgres_dsn):
        assert await spray(port) == {NOT_AUTHORIZED: 70}

        assert await log_in(port, "test/dev1", TOKEN) == ACCEPTED
