"""Measures how fast a consumer's messages are acknowledged, by the server's counts and clock.

The measurement is from outside and the same for every peer: the consumer's ack floor over time. The
first messages are not counted, since they include start-up and the first pull, nor are the last,
since some wait for a batch that never fills.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import psutil

from runtime.broker.connection import Broker

PUBLISHED_TOGETHER = 2000
UNCOUNTED = 5000
LOOK_EVERY_S = 0.05
STALL_S = 30.0


class Stalled(Exception):  # noqa: N818 - names what happened
    """A consumer made no progress for `STALL_S`: a defect of the host or of the peer."""


@dataclass(frozen=True, slots=True)
class Pace:
    """The result of one measurement.

    Attributes:
        per_s: messages acknowledged a second.
        cpu_us: microseconds of processor time of the consuming process per message.
    """

    per_s: float
    cpu_us: float


@dataclass(frozen=True, slots=True)
class _Reading:
    at_s: float
    acknowledged: int
    cpu_s: float


async def publish_all(broker: Broker, messages: Sequence[tuple[str, bytes]]) -> None:
    """Publish all messages, and wait for each confirmation."""
    for first in range(0, len(messages), PUBLISHED_TOGETHER):
        part = messages[first : first + PUBLISHED_TOGETHER]
        await asyncio.gather(*(broker.publish(subject, payload) for subject, payload in part))


async def watch(
    broker: Broker, stream: str, durable: str, messages: int, consuming: psutil.Process
) -> Pace:
    """Watch a consumer until `messages` are acknowledged.

    Raises:
        Stalled: no further acknowledgement for `STALL_S`, or the consuming process ended.
    """
    counted: list[_Reading] = []
    moved_s = time.monotonic()
    floor = 0
    while floor < messages:
        await asyncio.sleep(LOOK_EVERY_S)
        if not consuming.is_running():
            raise Stalled(f"the process that consumes {stream}/{durable} ended by itself")
        found = await broker.api(f"CONSUMER.INFO.{stream}.{durable}")
        reached = found["ack_floor"]["stream_seq"]
        if reached > floor:
            floor, moved_s = reached, time.monotonic()
        elif time.monotonic() - moved_s > STALL_S:
            raise Stalled(f"{stream}/{durable} stands still at {floor} of {messages}: {found}")
        if UNCOUNTED <= reached <= messages - UNCOUNTED:
            cpu = consuming.cpu_times()
            at = datetime.fromisoformat(found["ts"])
            counted.append(_Reading(at.timestamp(), reached, cpu.user + cpu.system))
    first, last = counted[0], counted[-1]
    between = last.acknowledged - first.acknowledged
    return Pace(
        per_s=between / (last.at_s - first.at_s),
        cpu_us=(last.cpu_s - first.cpu_s) / between * 1e6,
    )
