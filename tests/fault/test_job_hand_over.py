"""Jobs survive the death of a host at each moment of their hand-over, and no job is made twice."""

from collections import Counter
from pathlib import Path

import pytest

from runtime.broker.connection import Broker
from tests.fault.scene import Servers, flow, seeds
from tests.fault.test_full_streams import pause
from tests.support.host import eventually

pytestmark = pytest.mark.timeout(300)

WINDOW_S = 0.5


@seeds
async def test_a_host_that_dies_before_or_after_the_publish_of_jobs_loses_and_doubles_nothing(
    servers: Servers, tmp_path: Path, seed: int
) -> None:
    deaths = tmp_path / "deaths"
    deaths.write_text("", encoding="utf-8")
    environment = {"DEATHS_FILE": str(deaths)}
    async with flow(servers, seed, module="tests.fault.dying", environment=environment) as scene:
        order = ["before", "after", "after"]
        scene.chance.shuffle(order)
        deaths.write_text("\n".join(order), encoding="utf-8")
        for _ in order:
            await scene.hosts[0].died()
            await scene.hosts[0].start()
    assert deaths.read_text(encoding="utf-8") == ""


@seeds
async def test_a_job_that_is_stored_twice_after_the_duplicate_window_is_sent_once(
    servers: Servers, tmp_path: Path, seed: int
) -> None:
    deaths = tmp_path / "deaths"
    deaths.write_text("", encoding="utf-8")
    environment = {"DEATHS_FILE": str(deaths), "JOB_REPEAT_WAIT_S": "3"}
    module = "tests.fault.dying"

    # From the first message on: a host that dies during an attempt makes it again, as it should.
    async def make_no_attempt_and_forget_ids_soon(broker: Broker) -> None:
        await pause(broker, "2100-01-01T00:00:00Z")
        config = (await broker.api("STREAM.INFO.ROUTES"))["config"]
        window = {"duplicate_window": int(WINDOW_S * 1e9)}
        await broker.api("STREAM.UPDATE.ROUTES", {**config, **window})

    async with flow(
        servers,
        seed,
        module=module,
        environment=environment,
        prepare=make_no_attempt_and_forget_ids_soon,
    ) as scene:
        broker = scene.broker
        deaths.write_text("after", encoding="utf-8")
        await scene.hosts[0].died()
        await scene.last(2 * WINDOW_S, 4 * WINDOW_S)
        await scene.hosts[0].start()
        await scene.traffic.reach(scene.traffic.count)
        published_once = len(scene.traffic.routed) + len(scene.traffic.strays)

        async def has_second_copies() -> bool:
            found = await broker.api("STREAM.INFO.ROUTES")
            return int(found["state"]["last_seq"]) > published_once

        await eventually(has_second_copies, "a second copy in the stream", 60)
        await pause(broker, "2000-01-01T00:00:00Z")
    endpoint = scene.endpoint
    posts = Counter(request.headers["webhook-id"] for request in endpoint.requests)
    assert {job: n for job, n in posts.items() if n != 1 + (job in endpoint.refused)} == {}
