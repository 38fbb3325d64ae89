import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from runtime.broker.connection import Broker
from runtime.broker.streams import ensure, ensure_runtime_streams, plan
from runtime.errors import ConfigError
from runtime.manifest.model import Manifest
from tests.support.host import eventually
from tests.support.servers import NatsServer
from tests.support.versions import has_message_schedules

JOBS = {"subjects": ["jobs.>"], "retention": "workqueue", "max_age": "24h", "max_bytes": "10MB"}
WORK = {"handler": "some.module:handle", "consumer": {"stream": "JOBS", "durable": "workers"}}
EARLIER_STREAM = {
    "subjects": ["telemetry.>"],
    "retention": "limits",
    "storage": "file",
    "discard": "old",
    "max_age": 3600 * 10**9,
    "max_bytes": 1024**3,
    "max_msgs": -1,
    "max_msgs_per_subject": 100_000,
    "duplicate_window": 120 * 10**9,
    "num_replicas": 1,
    "allow_direct": True,
}
"""What `nats stream add TELEMETRY ... --defaults` of the first deployments made."""


@pytest.fixture(autouse=True)
async def clean_server(broker: Broker) -> None:
    answer = await broker.api("STREAM.NAMES")
    for name in answer.get("streams") or []:
        await broker.api(f"STREAM.DELETE.{name}")


def _manifest(**parts: Any) -> Manifest:
    return Manifest.model_validate(parts)


async def _config(broker: Broker, path: str) -> dict[str, Any]:
    config: dict[str, Any] = (await broker.api(path))["config"]
    return config


def _problems(refused: pytest.ExceptionInfo[ConfigError]) -> str:
    return str(refused.value)


async def test_everything_that_is_missing_is_created_once(broker: Broker) -> None:
    manifest = _manifest(streams={"JOBS": JOBS}, functions={"work": WORK})

    planned = await plan(broker, manifest)
    made = await ensure(broker, manifest)
    again = await ensure(broker, manifest)

    assert {(change.object, change.kind) for change in made} == {
        ("stream DEAD_LETTERS", "create"),
        ("stream MAILBOX", "create"),
        ("stream ADVISORIES", "create"),
        ("stream JOBS", "create"),
        ("consumer ADVISORIES/sweeper", "create"),
        ("consumer JOBS/workers", "create"),
        ("consumer MAILBOX/work", "create"),
    }
    assert planned == made
    assert again == []
    assert await plan(broker, manifest) == []
    consumer = await _config(broker, "CONSUMER.INFO.JOBS.workers")
    assert consumer["max_deliver"] == 5
    assert consumer["metadata"]["runtime.function"] == "work"


async def test_many_hosts_that_start_at_once_agree(nats_server: NatsServer) -> None:
    manifest = _manifest(streams={"JOBS": JOBS}, functions={"work": WORK})
    hosts = [await Broker.connect(nats_server.url, name=f"host {n}") for n in range(6)]

    await asyncio.gather(*(ensure(host, manifest) for host in hosts))

    assert await plan(hosts[0], manifest) == []
    for host in hosts:
        await host.close()


async def test_hosts_that_update_the_same_stream_at_once_agree(nats_server: NatsServer) -> None:
    hosts = [await Broker.connect(nats_server.url, name=f"host {n}") for n in range(4)]
    await ensure(hosts[0], _manifest(streams={"JOBS": JOBS}, functions={"work": WORK}))
    newer = _manifest(
        streams={"JOBS": JOBS | {"max_bytes": "20MB"}},
        functions={"work": WORK | {"retry": {"attempts": 9}}},
    )

    await asyncio.gather(*(ensure(host, newer) for host in hosts))

    assert (await _config(hosts[0], "CONSUMER.INFO.JOBS.workers"))["max_deliver"] == 9
    assert (await _config(hosts[0], "STREAM.INFO.JOBS"))["max_bytes"] == 20_000_000
    for host in hosts:
        await host.close()


async def test_a_stream_and_consumer_made_by_hand_are_updated_and_keep_their_messages(
    broker: Broker,
) -> None:
    await broker.api("STREAM.CREATE.TELEMETRY", {"name": "TELEMETRY", **EARLIER_STREAM})
    earlier_consumer = {
        "name": "ingest-workers",
        "durable_name": "ingest-workers",
        "ack_policy": "explicit",
        "deliver_policy": "all",
        "ack_wait": 5 * 10**9,
        "max_deliver": 3,
        "max_ack_pending": 1000,
        "max_waiting": 512,
        "replay_policy": "instant",
    }
    await broker.api(
        "CONSUMER.CREATE.TELEMETRY.ingest-workers",
        {"stream_name": "TELEMETRY", "config": earlier_consumer, "action": "create"},
    )
    for number in range(20):
        await broker.publish("telemetry.t1", str(number).encode())
    manifest = _manifest(
        streams={
            "TELEMETRY": {
                "subjects": ["telemetry.>"], "max_age": "2h", "max_bytes": "1GiB",
                "max_msgs_per_subject": 200_000,
            }
        },
        functions={
            "ingest": {
                "handler": "some.module:handle",
                "consumer": {
                    "stream": "TELEMETRY", "durable": "ingest-workers", "ack_wait": "30s",
                },
            }
        },
    )  # fmt: skip

    made = await ensure(broker, manifest)

    updated = {(each.object, each.field) for each in made if each.kind == "update"}
    assert updated == {
        ("stream TELEMETRY", "max_age"),
        ("stream TELEMETRY", "max_msgs_per_subject"),
        ("consumer TELEMETRY/ingest-workers", "ack_wait"),
        ("consumer TELEMETRY/ingest-workers", "max_ack_pending"),
        ("consumer TELEMETRY/ingest-workers", "max_deliver"),
        ("consumer TELEMETRY/ingest-workers", "metadata"),
    }
    info = await broker.api("STREAM.INFO.TELEMETRY")
    assert info["state"]["messages"] == 20
    assert info["config"]["allow_direct"] is True
    consumer = await _config(broker, "CONSUMER.INFO.TELEMETRY.ingest-workers")
    assert consumer["ack_wait"] == 30 * 10**9
    assert consumer["max_waiting"] == 512
    assert await plan(broker, manifest) == []


async def test_a_change_that_would_drop_messages_is_refused_and_nothing_is_touched(
    broker: Broker,
) -> None:
    await ensure(broker, _manifest(streams={"LOGS": {"subjects": ["a.>", "b.>"]}}))
    for number in range(10):
        await broker.publish("a.x", bytes(1000), msg_id=str(number))
    lower = {
        "subjects": ["a.>"], "max_bytes": 2000, "max_msgs": 5, "max_msgs_per_subject": 5,
        "retention": "interest",
    }  # fmt: skip

    with pytest.raises(ConfigError) as refused:
        await ensure(broker, _manifest(streams={"LOGS": lower, "NEW": {"subjects": ["new"]}}))

    fields = {problem.field for problem in refused.value.problems}
    assert fields == {"subjects", "max_bytes", "max_msgs", "max_msgs_per_subject", "retention"}
    assert "runtime apply MANIFESTS --allow-loss" in _problems(refused)
    assert (await broker.api("STREAM.INFO.LOGS"))["state"]["messages"] == 10
    assert "NEW" not in (await broker.api("STREAM.NAMES"))["streams"]


async def test_letting_old_messages_go_is_refused_while_there_are_more_than_the_limit(
    broker: Broker,
) -> None:
    def limited(**fields: Any) -> Manifest:
        return _manifest(streams={"LOGS": {"subjects": ["a.>"], **fields}})

    await ensure(broker, limited(discard="new"))
    for number in range(10):
        await broker.publish("a.x", b"x", msg_id=str(number))
    await ensure(broker, limited(discard="new", max_msgs=5))

    with pytest.raises(ConfigError, match="discard"):
        await ensure(broker, limited(discard="old", max_msgs=5))

    assert (await broker.api("STREAM.INFO.LOGS"))["state"]["messages"] == 10


async def test_a_narrower_filter_on_an_interest_stream_is_refused_as_it_would_drop_messages(
    broker: Broker,
) -> None:
    def filtered(*filters: str) -> Manifest:
        consumer = {"stream": "NEWS", "filter_subjects": list(filters)}
        function = {"handler": "some.module:handle", "consumer": consumer}
        streams = {"NEWS": {"subjects": ["a.>"], "retention": "interest"}}
        return _manifest(streams=streams, functions={"read": function})

    async def count() -> int:
        return int((await broker.api("STREAM.INFO.NEWS"))["state"]["messages"])

    async def dropped() -> bool:
        return await count() == 1

    await ensure(broker, filtered("a.b"))
    wider = await ensure(broker, filtered("a.b", "a.c"))
    for subject in ("a.b", "a.c"):
        await broker.publish(subject, b"x")

    with pytest.raises(ConfigError) as refused:
        await ensure(broker, filtered("a.b"))
    kept = await count()
    dropping = await ensure(broker, filtered("a.b"), allow_loss=True)

    assert [(change.field, change.kind) for change in wider] == [("filter_subjects", "update")]
    assert "consumer NEWS/read: filter_subjects" in _problems(refused)
    assert "runtime apply MANIFESTS --allow-loss" in _problems(refused)
    assert [(change.field, change.kind) for change in dropping] == [
        ("filter_subjects", "destructive")
    ]
    assert kept == 2
    await eventually(dropped, "the end of what nobody asks for")


async def test_a_lower_limit_that_drops_nothing_is_set_in_place(broker: Broker) -> None:
    await ensure(broker, _manifest(streams={"LOGS": {"subjects": ["a.>"]}}))
    for number in range(10):
        await broker.publish(f"a.{number % 5}", b"x", msg_id=str(number))

    made = await ensure(
        broker, _manifest(streams={"LOGS": {"subjects": ["a.>"], "max_msgs_per_subject": 2}})
    )

    assert [(each.field, each.kind) for each in made] == [("max_msgs_per_subject", "update")]
    assert (await broker.api("STREAM.INFO.LOGS"))["state"]["messages"] == 10


async def test_what_jetstream_cannot_change_is_named_with_the_way_out(broker: Broker) -> None:
    await ensure(broker, _manifest(streams={"JOBS": {"subjects": ["jobs.>"], "storage": "memory"}}))
    push = {
        "name": "workers", "durable_name": "workers", "ack_policy": "none",
        "deliver_policy": "all", "deliver_subject": "push.here",
    }  # fmt: skip
    payload = {"stream_name": "JOBS", "config": push, "action": "create"}
    await broker.api("CONSUMER.CREATE.JOBS.workers", payload)
    jobs = JOBS | {"storage": "file"}

    with pytest.raises(ConfigError) as refused:
        await ensure(broker, _manifest(streams={"JOBS": jobs}, functions={"work": WORK}))

    named = {(problem.where, problem.field) for problem in refused.value.problems}
    assert named >= {
        ("stream JOBS", "storage"),
        ("stream JOBS", "retention"),
        ("consumer JOBS/workers", "ack_policy"),
        ("consumer JOBS/workers", "deliver_subject"),
    }
    assert "nats consumer rm JOBS workers" in _problems(refused)


async def test_a_consumers_backoff_is_taken_back(broker: Broker) -> None:
    manifest = _manifest(streams={"JOBS": JOBS}, functions={"work": WORK})
    await ensure(broker, manifest)
    found = await _config(broker, "CONSUMER.INFO.JOBS.workers")
    payload = {"stream_name": "JOBS", "config": {**found, "backoff": [10**9, 3 * 10**9]}}
    await broker.api("CONSUMER.CREATE.JOBS.workers", payload)

    await ensure(broker, manifest)

    consumer = await _config(broker, "CONSUMER.INFO.JOBS.workers")
    assert not consumer.get("backoff")
    assert consumer["ack_wait"] == 30 * 10**9


async def test_a_consumers_filter_changes_in_place_both_ways(broker: Broker) -> None:
    def filtered(*filters: str) -> Manifest:
        consumer = {"stream": "LOGS", "filter_subjects": filters}
        function = {"handler": "some.module:handle", "consumer": consumer}
        return _manifest(streams={"LOGS": {"subjects": ["a.>"]}}, functions={"read": function})

    for filters in ([], ["a.b"], ["a.b", "a.c"], ["a.c"], []):
        await ensure(broker, filtered(*filters))

        found = await _config(broker, "CONSUMER.INFO.LOGS.read")
        single = found.get("filter_subject")
        assert [*(found.get("filter_subjects") or []), *([single] if single else [])] == filters


async def test_overlapping_filters_on_a_work_queue_are_refused_with_the_way_out(
    broker: Broker,
) -> None:
    functions = {
        name: {"handler": "some.module:handle", "consumer": {"stream": "JOBS"}}
        for name in ("one", "two")
    }

    with pytest.raises(ConfigError, match="filter_subjects that overlap with no other") as refused:
        await ensure(broker, _manifest(streams={"JOBS": JOBS}, functions=functions))

    assert [problem.where for problem in refused.value.problems] == ["consumer JOBS/two"]


async def test_a_subject_that_another_stream_owns_is_refused(broker: Broker) -> None:
    await ensure(broker, _manifest(streams={"OTHER": {"subjects": ["jobs.>"]}}))

    with pytest.raises(ConfigError, match="stream JOBS: subjects overlap"):
        await ensure(broker, _manifest(streams={"JOBS": JOBS}))


async def test_a_consumer_of_a_stream_that_nobody_made_is_refused(broker: Broker) -> None:
    with pytest.raises(ConfigError, match="consumer JOBS/workers: stream not found"):
        await ensure(broker, _manifest(functions={"work": WORK}))


async def test_more_replicas_than_the_server_has_are_refused(broker: Broker) -> None:
    stream = {"subjects": ["jobs.>"], "replicas": 3}

    with pytest.raises(ConfigError, match="set replicas to 1"):
        await ensure(broker, _manifest(streams={"JOBS": stream}))


async def test_a_mailbox_made_by_an_older_server_learns_schedules(broker: Broker) -> None:
    earlier = {"name": "MAILBOX", "subjects": ["mailbox.>"], "retention": "workqueue"}
    await broker.api("STREAM.CREATE.MAILBOX", {**earlier, "storage": "file", "num_replicas": 1})
    await broker.publish("mailbox.ready.work", b"kept")

    made = await ensure_runtime_streams(broker)

    changed = {each.field for each in made if each.object == "stream MAILBOX"}
    newer = {"allow_msg_schedules", "allow_atomic"}
    assert changed == (newer if has_message_schedules(broker) else set())
    assert (await broker.api("STREAM.INFO.MAILBOX"))["state"]["messages"] == 1
    assert await ensure_runtime_streams(broker) == []


@pytest.mark.nats_cli
async def test_the_official_command_lines_streams_are_taken_over(
    nats_server: NatsServer, broker: Broker, nats_cli: Callable[..., str]
) -> None:
    url = nats_server.url
    nats_cli(
        url, "stream", "add", "ROUTES", "--subjects", "routes.>", "--retention", "work",
        "--max-age", "24h", "--max-bytes", "512MB", "--storage", "file", "--replicas", "1",
        "--discard", "old", "--defaults",
    )  # fmt: skip
    nats_cli(
        url, "consumer", "add", "ROUTES", "route-delivery", "--filter", "", "--ack", "explicit",
        "--deliver", "all", "--max-deliver", "3", "--wait", "30s", "--max-pending", "100",
        "--pull", "--defaults",
    )  # fmt: skip
    await broker.publish("routes.t1", b"{}")
    routes = JOBS | {"subjects": ["routes.>"], "max_bytes": "1GB"}
    consumer = {"stream": "ROUTES", "durable": "route-delivery"}
    manifest = _manifest(
        streams={"ROUTES": routes},
        functions={"deliver": {"handler": "some.module:handle", "consumer": consumer}},
    )

    made = await ensure(broker, manifest)

    assert {each.kind for each in made if "ROUTES" in each.object} == {"update"}
    assert (await broker.api("STREAM.INFO.ROUTES"))["state"]["messages"] == 1
