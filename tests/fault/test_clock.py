"""A host's clock jumps by an hour, forward and back, while messages flow and are parked."""

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest

from runtime.broker.mailbox import Mailbox, Parked
from tests.fault.endpoint import Endpoint
from tests.fault.scene import READINGS, Servers, flow, seeds
from tests.support.command import runtime
from tests.support.host import eventually

pytestmark = pytest.mark.timeout(300)

HOUR_S = 3600
RELUCTANT_EVERY = 100
RETRY_AFTER_S = 300
SKEWED = "tests.fault.skewed"
PROGRAM = (sys.executable, "-m", SKEWED)


@seeds
async def test_a_clock_that_jumps_loses_and_doubles_nothing_and_nobody_waits_an_hour(
    servers: Servers, seed: int, tmp_path: Path
) -> None:
    clock = tmp_path / "clock"
    clock.write_text("0")
    endpoint = Endpoint(reluctant_every=RELUCTANT_EVERY, retry_after_s=RETRY_AFTER_S)
    asks = len(range(0, READINGS, RELUCTANT_EVERY))
    began_at = datetime.now(UTC)
    async with flow(
        servers, seed, module=SKEWED, environment={"CLOCK_FILE": str(clock)}, endpoint=endpoint
    ) as scene:
        mailbox = Mailbox(scene.broker)
        jumps = [HOUR_S, -HOUR_S]
        scene.chance.shuffle(jumps)
        for jump in jumps:
            clock.write_text(str(jump))
            await scene.traffic.reach(scene.traffic.confirmed + READINGS // 4)

        async def all_wait() -> list[Parked] | None:
            waiting = [parked async for parked in mailbox.list_parked()]
            return waiting if len(waiting) >= asks else None

        waiting = await eventually(all_wait, f"{asks} parked jobs", 60)
        clock.write_text(str(HOUR_S))
        run_now = ("parked", "run-now", "--function", "deliver_webhook")
        done = await runtime(servers.nats_url, *run_now, program=PROGRAM, CLOCK_FILE=str(clock))
    assert done.out.splitlines() == [f"{asks} parked messages made due now"]
    due = [parked.due_at - timedelta(seconds=RETRY_AFTER_S) for parked in waiting]
    assert began_at < min(due)
    assert max(due) < datetime.now(UTC)
    assert await span_of_attempts(servers.dsn) > timedelta(hours=2), "no function saw the jumps"


async def span_of_attempts(dsn: str) -> timedelta:
    """The time between the first and the last attempt, by the hosts' clock."""
    database = await asyncpg.connect(dsn)
    span = await database.fetchval(
        "SELECT max(started_at) - min(started_at) FROM delivery_attempts"
    )
    await database.close()
    assert isinstance(span, timedelta)
    return span
