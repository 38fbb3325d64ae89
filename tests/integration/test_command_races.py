"""Whatever happens to commands at once, each goes one allowed way, and tells of every step once."""

import asyncio
import json
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable
from itertools import pairwise
from typing import Any

import pytest

from functions.commands.acks import apply_ack
from functions.commands.creating import CommandSettings, create_command
from functions.commands.endpoints import cancel_command, mark_commands_sent
from functions.domain.downlinks import send_open_commands
from runtime import Reject
from runtime.resource.postgres import open_pool
from tests.support.calls import Caller, stored
from tests.support.commands import tend
from tests.support.ingest import TOKEN, register

LATE = """
UPDATE device_commands
SET expires_at = now(), timeout_s = 1, sent_at = sent_at - interval '1 hour'
WHERE command_id = $1
"""
DEVICES = ("dev1", "dev2")
COMMANDS = 40
ACTS = 400
AT_ONCE = 8
ENDS = {"succeeded", "failed", "rejected", "expired", "timed_out", "cancelled"}
LEADS_TO = {
    "queued": {"sent", "acked", *ENDS} - {"timed_out"},
    "sent": {"acked", *ENDS} - {"expired"},
    "acked": ENDS - {"expired"},
}


@pytest.fixture
async def api(postgres_dsn: str) -> AsyncIterator[Caller]:
    pool = await open_pool(postgres_dsn, max_size=AT_ONCE)
    for device in DEVICES:
        await register(pool, device=device)
    yield Caller(pool, settings=CommandSettings())
    await pool.close()


def name(number: int) -> dict[str, str]:
    return {
        "tenant_id": "test",
        "device_id": DEVICES[number % len(DEVICES)],
        "command_id": f"c{number}",
    }


async def act(api: Caller, chance: random.Random, sequence: int) -> None:
    """Something happens to some command; it may be there, or ended, or not."""
    number = chance.randrange(COMMANDS)
    who = name(number)
    answers = ("acked", "acked", "succeeded", "failed", "rejected")
    answer = {"command_id": who["command_id"], "provision_token": TOKEN}
    data = json.dumps({**answer, "status": chance.choice(answers)}).encode()
    message = stored(f"commands.test.{who['device_id']}.ack", data, sequence, stream="COMMANDS")
    match chance.randrange(8):
        case 0 | 1:
            request = {**who, "name": "run", "in_order": number % 3 == 0}
            await refusable(api.ask(create_command, **request))
        case 2 | 3:
            await api.ask(mark_commands_sent, commands=[name(n) for n in (number, number // 2)])
        case 4 | 5:
            await api.deliver(apply_ack, message)
        case 6:
            await refusable(api.ask(cancel_command, **who))
        case _:
            await api.pool.execute(LATE, who["command_id"])
            await send_open_commands(api.pool, [("test", device) for device in DEVICES])
            await tend(api)


async def refusable(work: Awaitable[Any]) -> None:
    try:
        await work
    except Reject:
        return


@pytest.mark.parametrize("seed", range(2))
async def test_commands_go_allowed_ways_whatever_happens_at_once(api: Caller, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - the same acts in every run
    for first in range(0, ACTS, AT_ONCE):
        await asyncio.gather(*(act(api, chance, first + n + 1) for n in range(AT_ONCE)))
        await only_one_in_order_is_under_way(api)
    ways: dict[str, dict[int, str]] = defaultdict(dict)
    for row in await api.pool.fetch("SELECT body FROM delivery_outbox WHERE queue = 'test/events'"):
        payload = json.loads(row["body"])["payload"]
        assert payload["version"] not in ways[payload["command_id"]]
        ways[payload["command_id"]][payload["version"]] = payload["status"]
    rows = await api.pool.fetch("SELECT * FROM device_commands")
    assert rows
    for row in rows:
        way = ways[row["command_id"]]
        assert sorted(way) == list(range(1, row["version"] + 1))
        steps = [way[version] for version in sorted(way)]
        assert (steps[0], steps[-1]) == ("queued", row["status"])
        for before, after in pairwise(steps):
            assert after in LEADS_TO[before], steps
        assert (row["finished_at"] is not None) == (row["status"] in ENDS)
        assert row["next_send_at"] is None or row["status"] in {"queued", "sent"}


async def only_one_in_order_is_under_way(api: Caller) -> None:
    most = await api.pool.fetchval(
        "SELECT max(sent) FROM (SELECT count(*) AS sent FROM device_commands"
        " WHERE in_order AND finished_at IS NULL AND sends > 0 GROUP BY device_id) AS counted"
    )
    assert most in {None, 1}
