"""The pull loop with messages of mixed sizes: its counts are exact, and it never stalls."""

import asyncio
import os
import random
from collections import deque

import pytest

from runtime.broker.connection import Broker
from runtime.broker.puller import Puller, Slots
from runtime.context import Publication
from runtime.message import Message
from tests.support.host import fresh

MESSAGES = int(os.environ.get("SOAK_MESSAGES", "2000"))
"""Of each run; those of large messages have a tenth."""
STALL_S = 4.0
"""Well under the thirty seconds after which a request that brought nothing ends by itself."""
SEEDS = range(int(os.environ.get("SOAK_RUNS", "6")))


def _sizes(random_: random.Random) -> list[int]:
    small, large = random_.choice([0, 10, 1000]), random_.choice([2000, 50_000, 300_000, 900_000])
    share = random_.choice([0.0, 0.02, 0.3])
    count = MESSAGES if share * large < 20_000 else MESSAGES // 10
    return [
        random_.randrange(large) if random_.random() < share else random_.randrange(small + 1)
        for _ in range(count)
    ]


class _Soak:
    """Takes messages, and releases them some turns later in random order."""

    def __init__(self, broker: Broker, stream: str, random_: random.Random) -> None:
        self.random = random_
        self.capacity = random_.choice([1, 2, 5, 64, 500, 2000])
        self.max_bytes = random_.choice([65_536, 200_000, 1_000_000, 8_000_000, 64_000_000])
        self.request_bytes = random_.choice([self.max_bytes, self.max_bytes // 8, 65_536])
        self.held: deque[Message] = deque()
        self.held_bytes = 0
        self.most_bytes = 0
        self.seen: list[int] = []
        self.arrived = asyncio.Event()
        self._broker = broker
        self.puller = Puller(
            broker,
            stream,
            "work",
            slots=Slots(
                lambda: self.capacity,
                lambda: len(self.held),
                lambda: self.max_bytes - self.held_bytes,
                self.request_bytes,
            ),
            deliver=self._deliver,
            recreate=self._recreate,
        )

    def _deliver(self, message: Message) -> None:
        assert message.attempt == 1
        self.seen.append(message.sequence)
        self.held.append(message)
        self.held_bytes += message.size_bytes
        self.most_bytes = max(self.most_bytes, self.held_bytes)
        self.arrived.set()

    async def _recreate(self) -> None:
        raise AssertionError("the consumer was never gone")

    async def work(self, count: int) -> None:
        while len(self.seen) < count or self.held:
            self.check()
            while not self.held:
                self.arrived.clear()
                async with asyncio.timeout(STALL_S):
                    await self.arrived.wait()
            done = self.random.randrange(1, len(self.held) + 1)
            await self._broker.send_all([(each.reply, b"+ACK") for each in list(self.held)[:done]])
            for _ in range(done):
                self.held_bytes -= self.held.popleft().size_bytes
            self.puller.wake()
            await asyncio.sleep(0)

    def check(self) -> None:
        requests = self.puller._requests
        assert self.puller.outstanding == sum(each.messages for each in requests)
        assert self.puller.outstanding_bytes == sum(each.size_bytes for each in requests)
        assert self.puller._open == sum(each.messages > 0 for each in requests)
        assert all(each.messages >= 0 and each.size_bytes >= 0 for each in requests)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", SEEDS)
async def test_what_is_counted_is_what_arrives_and_nothing_stalls(
    broker: Broker, seed: int
) -> None:
    random_ = random.Random(seed)  # noqa: S311 - not for secrets
    stream, sizes = fresh("SOAK"), _sizes(random_)
    await broker.api(f"STREAM.CREATE.{stream}", {"name": stream, "subjects": [f"{stream}.>"]})
    pending = random_.choice([1, 3, 100, 1000])
    config = {"durable_name": "work", "ack_policy": "explicit", "max_ack_pending": pending}
    await broker.api(f"CONSUMER.CREATE.{stream}.work", {"stream_name": stream, "config": config})
    soak = _Soak(broker, stream, random_)
    await soak.puller.start()
    working = asyncio.create_task(soak.work(len(sizes)))
    for first in range(0, len(sizes), 50):
        some = sizes[first : first + 50]
        await broker.publish_many(
            [
                Publication(f"{stream}.a", bytes(size), f"{first}-{number}")
                for number, size in enumerate(some)
            ]
        )
        if random_.random() < 0.2:
            await asyncio.sleep(random_.random() / 20)
    try:
        await working
    except TimeoutError:
        raise AssertionError(
            f"stalled at {len(soak.seen)} of {len(sizes)}, outstanding {soak.puller.outstanding}, "
            f"{soak.puller.outstanding_bytes} bytes"
        ) from None
    finally:
        await soak.puller.stop(2)

    assert soak.seen == list(range(1, len(sizes) + 1))
    # The server counts slightly fewer bytes per message than the pull loop.
    assert soak.most_bytes <= max(1.1 * soak.max_bytes, max(sizes) + 1000)
