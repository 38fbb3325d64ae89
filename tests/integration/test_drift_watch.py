"""Another client changes streams and consumers while a host runs."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import structlog.testing

from runtime.broker.connection import Broker
from runtime.host import Addresses, Host, HostOptions
from runtime.loader import load_all
from runtime.observe.metrics import Metrics
from tests.support.command import runtime
from tests.support.host import Journal, eventually, fresh, make_manifest, running_host
from tests.support.servers import NatsServer

DRIFTED = "JetStream no longer agrees with the manifest"
HEALED = "JetStream agrees with the manifest again"


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.lag.EVERY_S", 0.1)
    monkeypatch.setattr("runtime.drift_watch.EVERY_S", 0.1)


async def _change_consumer(broker: Broker, stream: str, durable: str, **fields: Any) -> None:
    """Change a consumer as `nats consumer edit` does."""
    config = (await broker.api(f"CONSUMER.INFO.{stream}.{durable}"))["config"]
    payload = {"stream_name": stream, "config": config | fields, "action": "update"}
    await broker.api(f"CONSUMER.CREATE.{stream}.{durable}", payload)


async def _change_stream(broker: Broker, stream: str, **fields: Any) -> None:
    config = (await broker.api(f"STREAM.INFO.{stream}"))["config"]
    await broker.api(f"STREAM.UPDATE.{stream}", config | fields)


async def _wait_for_line(lines: Any, event: str, count: int = 1) -> list[dict[str, Any]]:
    async def said() -> list[dict[str, Any]] | None:
        found = [dict(line) for line in lines if line["event"] == event]
        return found if len(found) >= count else None

    return await eventually(said, f"{count} of {event!r}") or []


async def _endpoint(broker: Broker, verb: str, function: str) -> dict[str, Any]:
    reply = await broker.request(f"$SRV.{verb}.{function}", b"")
    [endpoint] = json.loads(reply.data)["endpoints"]
    return dict(endpoint)


@asynccontextmanager
async def _host(
    url: str, work: str, stream: str, **more: Any
) -> AsyncIterator[tuple[Metrics, list[Any]]]:
    metrics, journal = Metrics("0.0.0"), Journal()

    async def note(*_: object) -> None:
        journal.add(1)

    spec = {"handler": "on_event", "consumer": {"stream": stream}, "retry": {"attempts": 20}}
    streams = {stream: {"subjects": [f"{stream}.>"], "max_age": "1d", **more}}
    options: dict[str, Any] = {"streams": streams, "metrics": metrics}
    with structlog.testing.capture_logs() as lines:
        async with running_host(url, {work: spec}, {work: note}, **options):
            yield metrics, lines


async def test_a_consumer_that_is_changed_is_a_warning_a_metric_and_shown_by_ls(
    broker: Broker, nats_server: NatsServer
) -> None:
    stream, work = fresh("S"), fresh("work")
    name = f"consumer {stream}/{work}"
    async with _host(nats_server.url, work, stream) as (metrics, lines):
        wanted = (await broker.api(f"CONSUMER.INFO.{stream}.{work}"))["config"]["max_deliver"]
        before = metrics.drifted_fields[name]
        await _change_consumer(broker, stream, work, max_deliver=3)
        [warning] = await _wait_for_line(lines, DRIFTED)
        during = metrics.drifted_fields[name]
        info = await _endpoint(broker, "INFO", work)
        stats = await _endpoint(broker, "STATS", work)
        listed = await runtime(nats_server.url, "ls")
        as_json = await runtime(nats_server.url, "ls", "--json")
        await _change_consumer(broker, stream, work, max_deliver=wanted)
        await _wait_for_line(lines, HEALED)
        after = metrics.drifted_fields[name]
        healed = await _endpoint(broker, "INFO", work)
        warnings = await _wait_for_line(lines, DRIFTED)

    assert warning == {
        "event": DRIFTED,
        "log_level": "warning",
        "object": name,
        "field": "max_deliver",
        "manifest": str(wanted),
        "server": "3",
    }
    assert len(warnings) == 1
    assert (before, during, after) == (0, 1, 0)
    said = f"{name}: max_deliver is 3, the manifest says {wanted}"
    assert info["metadata"]["drift"] == said
    assert "drift" not in healed["metadata"]
    assert stats["data"]["drift"] == [
        {"object": name, "field": "max_deliver", "server": 3, "manifest": wanted}
    ]
    [row] = [row for row in listed.rows if row[:1] == [work]]
    assert "drifted" in row
    assert f"{work}: {said}" in listed.out
    [shown] = [each for each in as_json.documents if each["function"] == work]
    assert shown["drift"] == said


async def test_each_further_value_is_one_warning_with_units(
    broker: Broker, nats_server: NatsServer
) -> None:
    stream, work = fresh("S"), fresh("work")
    async with _host(nats_server.url, work, stream) as (_, lines):
        await _change_consumer(broker, stream, work, ack_wait=90 * 10**9)
        await _wait_for_line(lines, DRIFTED)
        await _change_consumer(broker, stream, work, ack_wait=2 * 10**9)
        warnings = await _wait_for_line(lines, DRIFTED, 2)

    assert [(each["field"], each["manifest"], each["server"]) for each in warnings] == [
        ("ack_wait", "30s", "1m30s"),
        ("ack_wait", "30s", "2s"),
    ]


async def test_a_stream_that_is_changed_is_a_warning_for_the_function_that_consumes_it(
    broker: Broker, nats_server: NatsServer
) -> None:
    stream, work = fresh("S"), fresh("work")
    async with _host(nats_server.url, work, stream) as (metrics, lines):
        await _change_stream(broker, stream, max_age=3600 * 10**9)
        [warning] = await _wait_for_line(lines, DRIFTED)
        info = await _endpoint(broker, "INFO", work)
        counted = metrics.drifted_fields[f"stream {stream}"]

    assert (warning["object"], warning["field"]) == (f"stream {stream}", "max_age")
    assert (warning["manifest"], warning["server"]) == ("1d", "1h")
    assert info["metadata"]["drift"] == f"stream {stream}: max_age is 1h, the manifest says 1d"
    assert counted == 1


async def test_a_consumer_that_no_function_pulls_from_and_that_is_gone_is_a_warning(
    broker: Broker, nats_server: NatsServer
) -> None:
    stream, work = fresh("S"), fresh("work")
    consumers = {"consumers": {"reader": {"max_deliver": 3}}}
    async with _host(nats_server.url, work, stream, **consumers) as (metrics, lines):
        await broker.api(f"CONSUMER.DELETE.{stream}.reader")
        [warning] = await _wait_for_line(lines, DRIFTED)
        counted = metrics.drifted_fields[f"consumer {stream}/reader"]

    assert warning["missing"] == f"consumer {stream}/reader"
    assert counted == 1


async def test_fields_that_nobody_stated_may_be_changed(
    broker: Broker, nats_server: NatsServer
) -> None:
    stream, work = fresh("S"), fresh("work")
    async with _host(nats_server.url, work, stream) as (_, lines):
        await _change_stream(broker, stream, max_msgs=1_000_000)
        await _change_stream(broker, stream, max_age=3600 * 10**9)
        warnings = await _wait_for_line(lines, DRIFTED)

    assert [each["field"] for each in warnings] == ["max_age"]


async def test_a_host_that_only_binds_does_not_repeat_what_it_said_at_its_start(
    broker: Broker, nats_server: NatsServer
) -> None:
    stream, work = fresh("S"), fresh("work")
    spec = {"handler": "on_event", "consumer": {"stream": stream, "ack_wait": "40s"}}
    manifest = make_manifest({work: spec}, {stream: {"subjects": [f"{stream}.>"]}})

    def host(metrics: Metrics, *, bind_only: bool) -> Host:
        options = HostOptions(bind_only=bind_only)
        addresses = Addresses(nats_server.url, None)
        return Host(manifest, load_all(manifest), addresses, metrics, options)

    maker = host(Metrics("0.0.0"), bind_only=False)
    await maker.start()
    await maker.stop()
    await _change_consumer(broker, stream, work, ack_wait=30 * 10**9)
    metrics = Metrics("0.0.0")
    binder = host(metrics, bind_only=True)
    with structlog.testing.capture_logs() as lines:
        await binder.start()
        counted = metrics.drifted_fields[f"consumer {stream}/{work}"]
        await _change_stream(broker, stream, subjects=[f"{stream}.>", f"{stream}more.>"])
        warnings = await _wait_for_line(lines, DRIFTED)
        await binder.stop()

    at_start = [each["change"] for each in lines if each["event"].startswith("JetStream differs")]
    assert at_start == [f"update consumer {stream}/{work}: ack_wait from 30s to 40s"]
    assert counted == 1
    assert [each["field"] for each in warnings] == ["subjects"]


async def test_a_stream_in_memory_that_its_server_lost_is_made_again_and_reported_as_no_change(
    broker: Broker, nats_server: NatsServer
) -> None:
    stream, work, lost = fresh("S"), fresh("work"), fresh("LOST")
    streams = {
        stream: {"subjects": [f"{stream}.>"]},
        lost: {"subjects": [f"{lost}.>"], "storage": "memory", "consumers": {"reader": {}}},
    }
    spec = {"handler": "on_event", "consumer": {"stream": stream}}
    with structlog.testing.capture_logs() as first:
        async with running_host(nats_server.url, {work: spec}, streams=streams):
            pass
    # As after a restart of the server.
    await broker.api(f"STREAM.DELETE.{lost}")
    with structlog.testing.capture_logs() as second:
        async with running_host(nats_server.url, {work: spec}, streams=streams):
            made = await broker.api(f"CONSUMER.INFO.{lost}.reader")

    said = "JetStream was changed to agree with the manifest"
    assert [line["changes"] for line in first if line["event"] == said]
    assert not [line for line in second if line["event"] == said]
    assert made["name"] == "reader"


async def test_of_several_processes_one_reports_what_they_share_and_an_isolated_one_its_own(
    broker: Broker, nats_server: NatsServer
) -> None:
    stream, work, alone = fresh("S"), fresh("work"), fresh("alone")
    spec = {"handler": "on_event", "consumer": {"stream": stream}}
    manifest = make_manifest(
        {work: spec, alone: spec | {"isolate": True}}, {stream: {"subjects": [f"{stream}.>"]}}
    )
    functions = load_all(manifest)
    addresses = Addresses(nats_server.url, None)
    places = [
        ([work], HostOptions()),
        ([work], HostOptions(services=False)),
        ([alone], HostOptions(sweeps=False)),
    ]
    all_metrics = [Metrics("0.0.0") for _ in places]
    hosts = [
        Host(manifest, {name: functions[name] for name in names}, addresses, metrics, options)
        for (names, options), metrics in zip(places, all_metrics, strict=True)
    ]
    with structlog.testing.capture_logs() as lines:
        for host in hosts:
            await host.start()
        for name in (work, alone):
            await _change_consumer(broker, stream, name, max_ack_pending=7)
        await _change_stream(broker, stream, subjects=[f"{stream}.>", f"{stream}more.>"])
        warnings = await _wait_for_line(lines, DRIFTED, 3)
        for host in hosts:
            await host.stop()

    objects = {f"consumer {stream}/{work}", f"consumer {stream}/{alone}", f"stream {stream}"}
    assert {warning["object"] for warning in warnings} == objects
    assert len(warnings) == len(objects)
    watched = [metrics.drifted_fields.keys() for metrics in all_metrics]
    assert not watched[1]
    assert watched[2] == {f"consumer {stream}/{alone}", f"consumer MAILBOX/{alone}"}
    assert not watched[0] & watched[2]
