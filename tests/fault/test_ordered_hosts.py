"""Hosts of an ordered function die while they work; the order is kept."""

import asyncio
import json
import os
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import psutil
import pytest

from runtime.broker.connection import Broker
from runtime.context import Publication
from tests.support.host import eventually, fresh, letters_of, wait_until_settled
from tests.support.servers import NatsServer
from tests.support.serving import serving

pytestmark = pytest.mark.timeout(300)

ROUNDS = int(os.environ.get("FAULT_ROUNDS", "1"))
KEYS = 12
EACH = 60
KILLS = 3
MODULE = """
import asyncio, json, os
from pathlib import Path
from typing import Any
from runtime import Batch, Context, Event

JOURNAL = os.open(Path(__file__).with_name("journal"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)

def note(what: str, event: Event[dict[str, Any]]) -> None:
    entry = {name: event.data[name] for name in ("key", "number")}
    entry |= {"what": what, "pid": os.getpid()}
    os.write(JOURNAL, json.dumps(entry).encode() + b"\\n")

async def work(event: Event[dict[str, Any]], ctx: Context) -> None:
    if "exit" in event.data:
        os._exit(event.data["exit"])
    note("begin", event)
    await asyncio.sleep(0.004)
    note("end", event)

async def work_batch(batch: Batch[dict[str, Any]], ctx: Context) -> None:
    for event in batch:
        await work(event, ctx)
"""


class OrderedProject:
    """A project with one ordered function, and the journal of its processes."""

    def __init__(self, folder: Path, broker: Broker, **spec: Any) -> None:
        self.folder = folder
        self.broker = broker
        self.stream = fresh("WORKS")
        self.name = fresh("ordered")
        stated = {
            "handler": "working:work",
            "consumer": {"stream": self.stream, "ack_wait": "2s"},
            "retry": {"attempts": 3, "delay": "100ms"},
            "ordered_by": {"field": "key"},
            **spec,
        }
        streams = {self.stream: {"subjects": [self.stream.lower()]}}
        (folder / "working.py").write_text(MODULE)
        stated = {key: value for key, value in stated.items() if value is not None}
        manifest = {"streams": streams, "functions": {self.name: stated}}
        (folder / "app.yaml").write_text(json.dumps(manifest))

    async def publish(self, key: str, *numbers: int, **more: Any) -> None:
        contents = [{"key": key, "number": number, **more} for number in numbers]
        await self.broker.publish_many(
            [
                Publication(
                    self.stream.lower(),
                    json.dumps(content).encode(),
                    f"{self.stream}-{key}-{content['number']}",
                )
                for content in contents
            ]
        )

    def journal(self) -> list[dict[str, Any]]:
        path = self.folder / "journal"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        # The last line may be incomplete.
        return [json.loads(line) for line in lines if line.endswith("\n")]

    async def wait_for(self, count: int) -> list[dict[str, Any]]:
        """The journal, as soon as so many messages are done."""

        async def look() -> list[dict[str, Any]] | None:
            found = self.journal()
            done = {(each["key"], each["number"]) for each in found if each["what"] == "end"}
            return found if len(done) >= count else None

        return await eventually(look, f"{count} messages done", 60) or []

    async def kill_whoever_works(self, count: int) -> None:
        """When so many messages are done, kill the process that wrote the last line."""
        await self.wait_for(count)

        async def kill() -> bool:
            try:
                psutil.Process(self.journal()[-1]["pid"]).kill()
            except psutil.NoSuchProcess:
                return False  # Killed before; no other process has continued yet.
            return True

        await eventually(kill, "somebody who works", 60)


def orders(journal: list[dict[str, Any]]) -> dict[str, list[int]]:
    """The numbers of each key, in the order of their first completion."""
    done: dict[str, list[int]] = defaultdict(list)
    for entry in journal:
        if entry["what"] == "end" and entry["number"] not in done[entry["key"]]:
            done[entry["key"]].append(entry["number"])
    return dict(done)


def overlaps(journal: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Calls that began before another call of their key had ended, in a living process."""
    last_place = {entry["pid"]: place for place, entry in enumerate(journal)}
    open_in: dict[str, int] = {}
    found = []
    for place, entry in enumerate(journal):
        key, pid = entry["key"], entry["pid"]
        if entry["what"] == "end":
            open_in.pop(key, None)
            continue
        # A call in a killed process never ends, and the process writes no further line.
        if key in open_in and (open_in[key] == pid or last_place[open_in[key]] > place):
            found.append(entry)
        open_in[key] = pid
    return found


ROOMS: list[Any] = [
    pytest.param({}, id="for_all"),
    pytest.param({"max_in_flight": 60, "concurrency": 4}, id="for_less_than_comes"),
]


@pytest.mark.parametrize("seed", range(ROUNDS))
@pytest.mark.parametrize("room", ROOMS)
async def test_the_order_survives_the_death_of_the_working_host(
    room: dict[str, Any], seed: int, nats_server: NatsServer, broker: Broker, tmp_path: Path
) -> None:
    """There are more messages than places, so a host first receives others than come back."""
    chance = random.Random(seed)  # noqa: S311 - the same deaths in every run
    works = OrderedProject(tmp_path, broker, **room)
    addresses = {"NATS_URL": nats_server.url, "DATABASE_URL": "unused"}
    async with serving(tmp_path, "app.yaml", "--workers", "3", **addresses) as served:
        await served.wait_for_line("Ready", worker="3")
        publishing = asyncio.create_task(_publish_all(works, chance))
        done = 0
        for _ in range(KILLS):
            done += chance.randint(40, 160)
            await works.kill_whoever_works(done)
        await publishing
        journal = await works.wait_for(KEYS * EACH)
        await wait_until_settled(broker, works.stream, works.name)

    assert orders(journal) == {f"key{key}": list(range(EACH)) for key in range(KEYS)}
    assert overlaps(journal) == []
    assert len({entry["pid"] for entry in journal}) > 1
    assert await letters_of(broker, works.name) == []


async def _publish_all(works: OrderedProject, chance: random.Random) -> None:
    next_of = dict.fromkeys([f"key{key}" for key in range(KEYS)], 0)
    while next_of:
        key = chance.choice(list(next_of))
        await works.publish(key, next_of[key])
        next_of[key] += 1
        if next_of[key] == EACH:
            del next_of[key]


@pytest.mark.parametrize(
    "handler", ["working:work", pytest.param("working:work_batch", marks=pytest.mark.long)]
)
async def test_a_message_that_kills_its_host_is_given_up_alone(
    handler: str, nats_server: NatsServer, broker: Broker, tmp_path: Path
) -> None:
    works = OrderedProject(tmp_path, broker, handler=handler, isolate=True, retry={"attempts": 1})
    addresses = {"NATS_URL": nats_server.url, "DATABASE_URL": "unused"}
    async with serving(tmp_path, "app.yaml", **addresses) as served:
        await served.wait_for_line("Ready", worker=f"isolated-{works.name}")
        for number in range(30):
            await works.publish(f"key{number % 5}", number, **({"exit": 2} if number == 11 else {}))
        await works.wait_for(29)
        await wait_until_settled(broker, works.stream, works.name)

    [letter] = await letters_of(broker, works.name)
    assert letter.code == "MAX_DELIVERIES"
    assert json.loads(letter.message.data)["number"] == 11
    expected = {f"key{key}": [n for n in range(30) if n % 5 == key and n != 11] for key in range(5)}
    assert orders(works.journal()) == expected


async def test_what_the_dead_host_held_comes_first_although_more_waits_than_there_is_room_for(
    nats_server: NatsServer, broker: Broker, tmp_path: Path
) -> None:
    """One part of the backlog is in the stream, another part in spill queues."""
    works = OrderedProject(tmp_path, broker, max_in_flight=60, concurrency=4)
    numbers = range(200)
    addresses = {"NATS_URL": nats_server.url, "DATABASE_URL": "unused"}
    async with serving(tmp_path, "app.yaml", "--workers", "2", **addresses) as served:
        await served.wait_for_line("Ready", worker="2")
        await asyncio.gather(*(works.publish(f"key{key}", *numbers) for key in range(4)))
        for kill in range(1, 3):
            for pid in {entry["pid"] for entry in (await works.wait_for(kill * 200))[-20:]}:
                psutil.Process(pid).kill()
        journal = await works.wait_for(4 * len(numbers))

    assert orders(journal) == {f"key{key}": list(numbers) for key in range(4)}
    assert overlaps(journal) == []


async def test_fair_keys_lose_nothing_when_hosts_die_and_double_only_held_messages(
    nats_server: NatsServer, broker: Broker, tmp_path: Path
) -> None:
    room = 60
    by_key = {"ordered_by": None, "fair_by": {"field": "key"}}
    works = OrderedProject(tmp_path, broker, max_in_flight=room, concurrency=4, **by_key)
    flood, kills = range(1500), 3
    addresses = {"NATS_URL": nats_server.url, "DATABASE_URL": "unused"}
    async with serving(tmp_path, "app.yaml", "--workers", "2", **addresses) as served:
        await served.wait_for_line("Ready", worker="2")
        await works.publish("loud", *flood)
        for number in range(kills):
            await works.kill_whoever_works(len(flood) // 5 * (number + 1))
            await works.publish(f"quiet{number}", *range(10))
        journal = await works.wait_for(len(flood) + kills * 10)
        await wait_until_settled(broker, works.stream, works.name)

    ends = [(entry["key"], entry["number"]) for entry in journal if entry["what"] == "end"]
    assert len(set(ends)) == len(flood) + kills * 10
    # A host holds at most this many messages of stream and mailbox, calls included.
    assert len(ends) - len(set(ends)) <= kills * room
    assert await letters_of(broker, works.name) == []
