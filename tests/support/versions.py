"""Features that nats-server has from a version on, for tests with older servers."""

import functools
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any, Concatenate, ParamSpec

import pytest

from runtime.broker.connection import ApiError, Broker
from runtime.broker.stream_configs import SCHEDULES_SINCE
from runtime.errors import PublishFailed

P = ParamSpec("P")
Test = Callable[Concatenate[Broker, P], Coroutine[Any, Any, None]]


def has_message_schedules(broker: Broker) -> bool:
    return broker.server_version >= SCHEDULES_SINCE


def keeps_creation(broker: Broker) -> bool:
    """Whether a consumer keeps its time of creation after a restart of its server."""
    return broker.server_version >= (2, 12, 0)


async def delete_consumer(broker: Broker, stream: str, durable: str) -> None:
    """Delete a consumer. nats-server 2.11 may report an error of its file although it deleted."""
    before = await broker.api(f"CONSUMER.INFO.{stream}.{durable}")
    try:
        await broker.api(f"CONSUMER.DELETE.{stream}.{durable}")
    except ApiError:
        try:
            after = await broker.api(f"CONSUMER.INFO.{stream}.{durable}")
        except ApiError as gone:
            assert gone.code == HTTPStatus.NOT_FOUND  # noqa: PT017 - it may be made anew already
        else:
            assert after["created"] != before["created"]


def parks(test: Test[P]) -> Test[P]:
    """For a test that parks messages: without message schedules, expect a refusal."""

    @functools.wraps(test)
    async def run(broker: Broker, *arguments: P.args, **fixtures: P.kwargs) -> None:
        if has_message_schedules(broker):
            await test(broker, *arguments, **fixtures)
            return
        with pytest.raises(PublishFailed, match="takes no message schedules"):
            await test(broker, *arguments, **fixtures)

    return run  # type: ignore[return-value]  # called with fixtures by name
