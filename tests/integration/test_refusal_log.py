"""Log lines about messages in quarantine."""

import asyncio

import asyncpg
import pytest
from structlog.testing import capture_logs

from functions.domain import refusal_log
from runtime.broker.connection import Broker
from tests.support.host import eventually
from tests.support.ingest import GOOD, raw, register, started


async def test_each_reason_is_told_once_and_then_as_a_number_each_minute(
    postgres_dsn: str, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusal_log, "WINDOW_S", 0.3)
    monkeypatch.setattr(refusal_log, "_windows", {})  # Another test's minute is not over yet.
    secret = {**GOOD, "provision_token": "a wrong token"}

    async def is_summed_up() -> bool:
        return any("messages" in line for line in lines)

    with capture_logs() as lines:
        async with started(postgres_dsn, broker) as function:
            await register(function.pool)
            bad = [raw(n, secret) for n in range(1, 31)]
            await function.run(*bad, raw(50, b"no json"), raw(51))
            assert await function.counts() == (1, 31)
            await eventually(is_summed_up, "the number of the others")

    told = [line for line in lines if "quarantine" in line["event"]]
    assert [(line["log_level"], line["reason"]) for line in told] == [
        ("warning", "TOKEN_INVALID"),
        ("warning", "INVALID_JSON"),
        ("warning", "TOKEN_INVALID"),
    ]
    assert (told[0]["tenant_id"], told[0]["device_id"]) == ("test", "dev1")
    assert (told[2]["event"], told[2]["messages"]) == ("More messages went into quarantine", 29)
    assert "a wrong token" not in str(told)


async def test_nothing_is_told_of_a_batch_that_was_rolled_back(
    postgres_dsn: str, broker: Broker
) -> None:
    with capture_logs() as lines:
        async with started(postgres_dsn, broker) as function:
            await register(function.pool)
            await function.pool.execute("ALTER TABLE quarantine_events RENAME TO hidden")
            with pytest.raises(asyncpg.UndefinedTableError):
                await function.run(raw(1, b"no json"))
            await asyncio.sleep(0)

    assert not [line for line in lines if "quarantine" in line["event"]]
