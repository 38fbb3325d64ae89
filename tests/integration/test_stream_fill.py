"""A stream that refuses when it is full is told of before."""

from dataclasses import replace

import pytest
import structlog.testing
from prometheus_client import generate_latest

import runtime.stream_fill
from runtime.broker.connection import Broker
from runtime.broker.mailbox import Mailbox
from runtime.broker.streams import ensure
from runtime.manifest import Manifest
from runtime.message import Message
from runtime.observe.metrics import Metrics
from runtime.stream_fill import StreamFill
from tests.support.host import eventually, fresh

_LIMIT = 100_000


async def test_a_stream_that_is_nearly_full_shows_in_log_metrics_and_readiness(
    broker: Broker,
) -> None:
    name = fresh("S")
    stream = {"subjects": [name], "max_bytes": _LIMIT, "discard": "new"}
    manifest = Manifest.model_validate({"streams": {name: stream}})
    await ensure(broker, manifest)
    metrics = Metrics("0.0.0")
    fill = StreamFill(broker, metrics, Mailbox(broker), manifest)

    async def told() -> bool:
        await fill._ask(name)
        return await fill.check() is not None

    assert not await told()
    with structlog.testing.capture_logs() as logged:
        for _ in range(8):
            await broker.publish(name, b"x" * 10_000)
        await eventually(told, "a stream that is nearly full")
        assert await told()
        await broker.api(f"STREAM.PURGE.{name}")
        assert not await told()

    assert [(line["log_level"], line["stream"]) for line in logged] == [
        ("warning", name),
        ("info", name),
    ]
    shown = generate_latest(metrics.registry).decode()
    assert f'runtime_stream_limit_bytes{{stream="{name}"}} {_LIMIT:.1f}' in shown
    assert f'runtime_stream_bytes{{stream="{name}"}} 0.0' in shown


async def test_dead_letters_have_a_limit_and_refuse_when_full(broker: Broker) -> None:
    await ensure(broker, Manifest())
    config = (await broker.api("STREAM.INFO.DEAD_LETTERS"))["config"]
    assert config["max_bytes"] == 1_000_000_000
    assert config["discard"] == "new"


async def test_a_manifest_may_give_dead_letters_another_limit(broker: Broker) -> None:
    own = {"subjects": ["dead_letters.>"], "max_bytes": "5GB"}
    await ensure(broker, Manifest.model_validate({"streams": {"DEAD_LETTERS": own}}))
    config = (await broker.api("STREAM.INFO.DEAD_LETTERS"))["config"]
    assert config["max_bytes"] == 5_000_000_000
    await ensure(broker, Manifest())


async def test_nothing_is_parked_in_a_full_mailbox(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime.stream_fill, "MAILBOX_BYTES", 10_000)
    mailbox, metrics = Mailbox(broker), Metrics("0.0.0")
    await mailbox.ensure()
    fill = StreamFill(broker, metrics, mailbox, Manifest())
    parked = Message("jobs.a", b"x" * 6_000, stream="JOBS", sequence=1, stored_at_ns=1)
    assert mailbox.supports_parking
    for sequence in (1, 2):
        await mailbox.park(replace(parked, sequence=sequence), "work", 3600)

    async def is_full() -> bool:
        await fill._ask("MAILBOX")
        return not mailbox.supports_parking

    await eventually(is_full, "a full mailbox")
    assert (await fill.check() or "").startswith("NEARLY_FULL MAILBOX 1")
    await broker.api("STREAM.PURGE.MAILBOX")
    await fill._ask("MAILBOX")
    assert mailbox.supports_parking
