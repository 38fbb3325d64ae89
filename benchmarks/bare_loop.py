"""The peer of ingest: a loop that consumes, copies into PostgreSQL and acknowledges.

Run as `python -m benchmarks.bare_loop STREAM DURABLE`, with NATS_URL and DATABASE_URL set. The loop
writes the same table under the same unique key, but checks nothing: the payload goes unchanged into
the JSON column, and tenant and device come from the subject.
"""

import asyncio
import os
import signal
import sys
from datetime import UTC, datetime

import asyncpg
import uvloop

from runtime.broker.connection import Broker
from runtime.broker.puller import Puller, Slots
from runtime.broker.settler import Settler
from runtime.manifest.model import DEFAULT_BYTE_BUDGET
from runtime.message import Message

BATCH = 1000
WRITERS = 4
IN_FLIGHT = 8192
COLUMNS = ("time", "tenant_id", "device_id", "site_id", "msg_type", "seq", "metrics")


def _row(message: Message) -> tuple[object, ...]:
    _, tenant_id, device_id, *_ = message.subject.split(".")
    time = datetime.fromtimestamp(message.stored_at_ns // 1000 / 1_000_000, tz=UTC)
    text = message.data.decode()
    return time, tenant_id, device_id, "s1", "telemetry", message.sequence, text


class BareLoop:
    """Pulls with the host's puller, and writes with as many connections as the host's ingest."""

    def __init__(self, settler: Settler, pool: "asyncpg.Pool[asyncpg.Record]") -> None:
        self._settler = settler
        self._pool = pool
        self._waiting: list[Message] = []
        self._arrived = asyncio.Event()
        self._held = 0
        self.puller: Puller | None = None

    def held(self) -> int:
        """The number of messages received and not yet acknowledged."""
        return self._held

    def deliver(self, message: Message) -> None:
        """Add a received message."""
        self._held += 1
        self._waiting.append(message)
        self._arrived.set()

    async def write(self) -> None:
        """Copy and acknowledge batches until cancelled."""
        while True:
            await self._arrived.wait()
            batch, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
            if not self._waiting:
                self._arrived.clear()
            async with self._pool.acquire() as connection:
                await connection.copy_records_to_table(
                    "telemetry", records=[_row(message) for message in batch], columns=COLUMNS
                )
            self._settler.ack_all(batch)
            self._held -= len(batch)
            if self.puller is not None:
                self.puller.wake()


async def _recreate() -> None:
    raise RuntimeError("the consumer is gone")


async def main(stream: str, durable: str) -> None:
    """Run until SIGTERM."""
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    broker = await Broker.connect(os.environ["NATS_URL"], name="bare loop")
    settler = Settler(broker)
    address = os.environ["DATABASE_URL"]
    async with asyncpg.create_pool(address, min_size=WRITERS, max_size=WRITERS) as pool:
        loop = BareLoop(settler, pool)
        loop.puller = Puller(
            broker,
            stream,
            durable,
            slots=Slots(
                lambda: IN_FLIGHT, loop.held, lambda: DEFAULT_BYTE_BUDGET, DEFAULT_BYTE_BUDGET
            ),
            deliver=loop.deliver,
            recreate=_recreate,
        )
        writers = [asyncio.create_task(loop.write()) for _ in range(WRITERS)]
        await loop.puller.start()
        stopped = asyncio.create_task(ended.wait())
        done, _ = await asyncio.wait({stopped, *writers}, return_when=asyncio.FIRST_COMPLETED)
        await loop.puller.stop(1)
        for writer in writers:
            writer.cancel()
        await asyncio.gather(*writers, return_exceptions=True)
        for task in done:
            await task  # Raises the error that ended a writer.
        await settler.stop(1)
    await broker.close()


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
