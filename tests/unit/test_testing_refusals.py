"""What the server in memory does not model, it refuses by name."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest

from runtime.broker.connection import ApiError, Broker
from runtime.errors import PublishFailed
from runtime.testing.server.memory_server import MemoryServer
from tests.support.probe import Probe


@pytest.fixture
async def server() -> AsyncIterator[MemoryServer]:
    memory = MemoryServer(datetime.now(UTC))
    yield memory
    memory.close()


@pytest.fixture
async def probe(server: MemoryServer) -> AsyncIterator[Probe]:
    broker = await Broker.connect(server.url, name="test")
    yield Probe(broker)
    await broker.close()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mirror", {"name": "OTHER"}),
        ("sources", [{"name": "OTHER"}]),
        ("republish", {"src": ">", "dest": "copy.>"}),
        ("subject_transform", {"src": "a", "dest": "b"}),
        ("allow_msg_ttl", True),
        ("allow_msg_counter", True),
        ("discard_new_per_subject", True),
        ("deny_delete", True),
        ("max_consumers", 5),
    ],
)
async def test_a_stream_with_another_field_is_refused(
    probe: Probe, server: MemoryServer, field: str, value: Any
) -> None:
    with pytest.raises(ApiError, match=f"the stream field {field}.* is not modelled in memory"):
        await probe.make(**{field: value})
    assert len(server.not_modelled) == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("backoff", [1]),
        ("deliver_subject", "push"),
        ("ack_policy", "all"),
        ("deliver_policy", "last_per_subject"),
        ("headers_only", True),
        ("priority_groups", ["a"]),
        ("max_batch", 5),
    ],
)
async def test_a_consumer_with_another_field_is_refused(
    probe: Probe, field: str, value: Any
) -> None:
    await probe.make()
    with pytest.raises(ApiError, match=f"the consumer field {field}.* is not modelled in memory"):
        await probe.consume(**{field: value})


async def test_a_consumer_without_a_name_is_refused(probe: Probe) -> None:
    await probe.make()
    with pytest.raises(ApiError, match="a consumer without a name is not modelled"):
        await probe.broker.api(f"CONSUMER.CREATE.{probe.stream}", {"config": {}})


@pytest.mark.parametrize(
    "subject", ["STREAM.SNAPSHOT.S", "CONSUMER.UNPIN.S.c", "META.LEADER.STEPDOWN", "DIRECT.GET.S"]
)
async def test_another_request_is_refused(probe: Probe, subject: str) -> None:
    with pytest.raises(ApiError, match=r"the API .* is not modelled in memory"):
        await probe.broker.api(subject)


@pytest.mark.parametrize(
    "headers",
    [
        {"Nats-TTL": "5s"},
        {"Nats-Incr": "+1"},
        {"Nats-Schedule": "@every 5s", "Nats-Schedule-Target": "x"},
    ],
)
async def test_a_message_with_another_acting_header_is_refused(
    probe: Probe, headers: dict[str, str]
) -> None:
    await probe.make(allow_msg_schedules=True)
    with pytest.raises(PublishFailed, match="is not modelled in memory"):
        await probe.put("a", headers=headers)


async def test_another_acknowledgement_and_another_pull_field_are_refused(
    probe: Probe, server: MemoryServer
) -> None:
    await probe.make()
    await probe.consume()
    await probe.put("a")
    message = await probe.one()
    await probe.broker.send(message.reply, b"+NXT")
    await probe.broker.send(
        f"$JS.API.CONSUMER.MSG.NEXT.{probe.stream}.c", b'{"batch": 1, "group": "a"}', "inbox"
    )
    await probe.broker.flush()
    assert [text.partition(" is not")[0] for text in server.not_modelled] == [
        "the acknowledgement +NXT",
        "the field group of a pull request",
    ]
