"""Up to when devices' answers are applied, as JetStream tells."""

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import pytest
import structlog

from functions.commands.answer_backlog import PATIENCE_S, UNKNOWN, AnswerBacklog, Waiting
from runtime import Context
from runtime.broker.connection import Broker
from runtime.context import Scope
from tests.support.host import fresh


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Answers:
    """A stream with a consumer."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.stream = fresh("ANSWERS")
        self.ctx: Context[Any] = Context(
            Scope("test", None, broker, {}, structlog.stdlib.get_logger())
        )
        self.backlog = AnswerBacklog(self.stream, "workers")

    async def create(self, what: str, **config: Any) -> None:
        await self.broker.api(what, config)

    async def give(self, count: int) -> None:
        for _ in range(count):
            await self.broker.publish(f"{self.stream}.a", b"")

    async def stored_at(self, sequence: int) -> datetime:
        found = await self.broker.api(f"STREAM.MSG.GET.{self.stream}", {"seq": sequence})
        return datetime.fromisoformat(found["message"]["time"])

    async def settle(self, count: int) -> None:
        messages = await self.broker.pull(
            self.stream, "workers", messages=count, size_bytes=10_000, wait_s=10
        )
        for message in messages:
            await self.broker.request(message.reply, b"+ACK", timeout_s=10)

    async def until(self) -> datetime | None:
        return await self.backlog.handled_until(self.ctx)


@pytest.fixture
async def answers(broker: Broker) -> AsyncIterator[Answers]:
    made = Answers(broker)
    await made.create(
        f"STREAM.CREATE.{made.stream}", name=made.stream, subjects=[f"{made.stream}.>"]
    )
    yield made
    await broker.api(f"STREAM.DELETE.{made.stream}", None)


async def test_the_oldest_answer_that_is_not_settled_counts(answers: Answers) -> None:
    await answers.give(3)
    assert await answers.until() is None  # Nobody applies them.
    await answers.create(
        f"CONSUMER.DURABLE.CREATE.{answers.stream}.workers",
        stream_name=answers.stream,
        config={"durable_name": "workers", "ack_policy": "explicit"},
    )
    assert await answers.until() == await answers.stored_at(1)
    await answers.settle(2)
    assert await answers.until() == await answers.stored_at(3)
    # One that is with a function is not applied yet.
    await answers.broker.pull(answers.stream, "workers", messages=1, size_bytes=10_000, wait_s=10)
    assert await answers.until() == await answers.stored_at(3)


async def test_when_all_are_settled_or_gone_nothing_is_waited_for(answers: Answers) -> None:
    await answers.create(
        f"CONSUMER.DURABLE.CREATE.{answers.stream}.workers",
        stream_name=answers.stream,
        config={"durable_name": "workers", "ack_policy": "explicit"},
    )
    assert await answers.until() is None
    await answers.give(2)
    await answers.settle(2)
    assert await answers.until() is None
    await answers.give(1)
    await answers.create(f"STREAM.PURGE.{answers.stream}")
    assert await answers.until() is None


async def test_what_nobody_settles_is_waited_for_for_a_while() -> None:
    clock = Clock()
    backlog = AnswerBacklog("S", "d", clock)
    at = datetime.fromisoformat("2026-11-29T12:00:00Z")
    for floor in (7, 8):
        for _ in range(2):
            assert backlog.judge(Waiting(floor, at)) == at
            clock.now_s += PATIENCE_S / 2
    assert backlog.judge(Waiting(8, at)) is None
    # It goes on, and an outage of NATS counts alike.
    assert backlog.judge(Waiting(9, at)) == at
    assert backlog.judge(UNKNOWN) == UNKNOWN.stored_at
    clock.now_s += PATIENCE_S
    assert backlog.judge(UNKNOWN) is None
    assert backlog.judge(None) is None
    assert backlog.judge(UNKNOWN) == UNKNOWN.stored_at
