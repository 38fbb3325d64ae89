"""Hosts of an ordered function die while they work: its order survives."""

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
from tests.host import eventually, fresh, letters_of, wait_until_settled
from tests.servers import NatsServer
from tests.serving import serving

pytestmark = pytest.mark.timeout(240)

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


class Works:
    """A project with one ordered function, and what its processes noted."""

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
        manifest = {"streams": streams, "functions": {self.name: stated}}
        (folder / "app.yaml").write_text(json.dumps(manifest))

    async def publish(self, key: str, number: int, **more: Any) -> None:
        data = json.dumps({"key": key, "number": number, **more}).encode()
        publication = Publication(self.stream.lower(), data, f"{self.stream}-{key}-{number}")
        await self.broker.publish_many([publication])

    def journal(self) -> list[dict[str, Any]]:
        path = self.folder / "journal"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]

    async def wait_for(self, ends: int) -> list[dict[str, Any]]:
        """The journal, when so many calls have come to their end."""

        async def look() -> list[dict[str, Any]] | None:
            found = self.journal()
            return found if sum(each["what"] == "end" for each in found) >= ends else None

        return await eventually(look, f"{ends} calls", 60) or []


def orders(journal: list[dict[str, Any]]) -> dict[str, list[int]]:
    """The numbers of each key in the order in which they were first done."""
    done: dict[str, list[int]] = defaultdict(list)
    for entry in journal:
        if entry["what"] == "end" and entry["number"] not in done[entry["key"]]:
            done[entry["key"]].append(entry["number"])
    return dict(done)


def overlaps(journal: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Calls that began while another of their key had not ended, in a process that went on."""
    last_place = {entry["pid"]: place for place, entry in enumerate(journal)}
    open_in: dict[str, int] = {}
    found = []
    for place, entry in enumerate(journal):
        key, pid = entry["key"], entry["pid"]
        if entry["what"] == "end":
            open_in.pop(key, None)
            continue
        # What a process had begun when it was killed never ends; it notes nothing any more either.
        if key in open_in and (open_in[key] == pid or last_place[open_in[key]] > place):
            found.append(entry)
        open_in[key] = pid
    return found


@pytest.mark.parametrize("seed", range(ROUNDS))
async def test_the_order_survives_the_death_of_whoever_works(
    seed: int, nats_server: NatsServer, broker: Broker, tmp_path: Path
) -> None:
    chance = random.Random(seed)  # noqa: S311 - the same deaths in every run
    works = Works(tmp_path, broker)
    addresses = {"NATS_URL": nats_server.url, "DATABASE_URL": "unused"}
    async with serving(tmp_path, "app.yaml", "--workers", "3", **addresses) as served:
        await served.wait_for_line("Ready", worker="3")
        publishing = asyncio.create_task(_publish_all(works, chance))
        ends = 0
        for _ in range(KILLS):
            ends += chance.randint(40, 160)
            found = await works.wait_for(ends)
            psutil.Process(found[-1]["pid"]).kill()
        await publishing
        journal = await works.wait_for(KEYS * EACH)
        await wait_until_settled(broker, works.stream, works.name)

    assert orders(journal) == {f"key{key}": list(range(EACH)) for key in range(KEYS)}
    assert overlaps(journal) == []
    assert len({entry["pid"] for entry in journal}) > 1
    assert await letters_of(broker, works.name) == []


async def _publish_all(works: Works, chance: random.Random) -> None:
    next_of = dict.fromkeys([f"key{key}" for key in range(KEYS)], 0)
    while next_of:
        key = chance.choice(list(next_of))
        await works.publish(key, next_of[key])
        next_of[key] += 1
        if next_of[key] == EACH:
            del next_of[key]


@pytest.mark.parametrize("handler", ["working:work", "working:work_batch"])
async def test_a_message_that_kills_whoever_works_is_given_up_alone(
    handler: str, nats_server: NatsServer, broker: Broker, tmp_path: Path
) -> None:
    works = Works(tmp_path, broker, handler=handler, isolate=True, retry={"attempts": 1})
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
