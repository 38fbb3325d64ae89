"""The peer: FastStream's pull subscriber with a handler that does nothing, on uvloop.

Run as `python -m benchmarks.faststream_nothing STREAM SUBJECT DURABLE single|batch`, with NATS_URL
set. The subscriber binds to an existing consumer, so that both peers use the same configuration.
"""

import os
import sys
from typing import Any

import uvloop
from faststream import FastStream
from faststream.nats import JStream, NatsBroker, PullSub

BATCH_SIZE = 500


async def take_one(body: Any) -> None:  # noqa: ANN401 - FastStream decodes any JSON
    """Do nothing with one message."""


async def take_batch(body: list[Any]) -> None:
    """Do nothing with a batch."""


def main(stream: str, subject: str, durable: str, shape: str) -> None:
    """Consume until a signal arrives."""
    # logger=None: a line per message in the log would be unfair.
    broker = NatsBroker(os.environ["NATS_URL"], logger=None)
    is_batch = shape == "batch"
    subscribe = broker.subscriber(
        subject,
        stream=JStream(name=stream, declare=False),
        durable=durable,
        pull_sub=PullSub(batch_size=BATCH_SIZE, batch=is_batch),
    )
    subscribe(take_batch if is_batch else take_one)
    uvloop.run(FastStream(broker, logger=None).run())


if __name__ == "__main__":
    main(*sys.argv[1:])
