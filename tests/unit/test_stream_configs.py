import pytest

from runtime.broker.stream_configs import (
    MAILBOX,
    Wanted,
    consumer_config,
    runtime_streams,
    stream_config,
    wanted_by_manifest,
    wanted_by_runtime,
)
from runtime.errors import ConfigError
from runtime.manifest.model import ConsumerSpec, Manifest, StreamSpec


def _manifest(**parts: object) -> Manifest:
    return Manifest.model_validate(parts)


def _function(**consumer: object) -> dict[str, object]:
    return {"handler": "some.module:handle", "consumer": {"stream": "JOBS", **consumer}}


def _by_name(wanted: list[Wanted]) -> dict[str, Wanted]:
    return {each.name: each for each in wanted}


def test_a_stream_is_written_in_jetstreams_own_terms() -> None:
    spec = StreamSpec.model_validate(
        {"subjects": ["jobs.>"], "max_age": "1h", "max_bytes": "1GB", "replicas": 3}
    )

    config = stream_config("JOBS", spec)

    assert config["name"] == "JOBS"
    assert config["max_age"] == 3_600_000_000_000
    assert config["max_bytes"] == 1_000_000_000
    assert config["num_replicas"] == 3
    assert config["duplicate_window"] == 120_000_000_000


def test_a_duplicate_window_is_never_longer_than_the_messages_live() -> None:
    spec = StreamSpec.model_validate({"subjects": ["jobs.>"], "max_age": "30s"})

    assert stream_config("JOBS", spec)["duplicate_window"] == 30_000_000_000


def test_a_consumer_acks_explicitly_and_has_no_backoff() -> None:
    config = consumer_config("worker", ConsumerSpec(), max_attempts=5, function="work")

    assert config["ack_policy"] == "explicit"
    assert config["max_deliver"] == 5
    assert config["ack_wait"] == 30_000_000_000
    assert config["metadata"] == {"runtime.function": "work"}
    assert "backoff" not in config
    assert "deliver_subject" not in config


def test_a_consumers_own_max_deliver_comes_before_the_retry_policys() -> None:
    config = consumer_config("worker", ConsumerSpec(max_deliver=9), max_attempts=5)

    assert config["max_deliver"] == 9


def test_a_retry_schedule_sets_how_often_a_message_is_delivered() -> None:
    function = _function() | {"retry": {"schedule": ["5s", "5m", "30m"]}}
    manifest = _manifest(streams={"JOBS": {"subjects": ["jobs.>"]}}, functions={"work": function})

    wanted = _by_name(wanted_by_manifest(manifest))

    assert wanted["consumer JOBS/work"].config["max_deliver"] == 4
    assert wanted["consumer MAILBOX/work"].config["max_deliver"] == 4


def test_each_consuming_function_has_a_mailbox_consumer_for_its_subject_alone() -> None:
    manifest = _manifest(functions={"work": _function(), "rest": _function()})

    wanted = _by_name(wanted_by_manifest(manifest))

    assert wanted["consumer MAILBOX/work"].config["filter_subjects"] == ["mailbox.ready.work"]
    assert wanted["consumer MAILBOX/rest"].config["filter_subjects"] == ["mailbox.ready.rest"]


def test_a_streams_consumer_and_the_functions_binding_complete_each_other() -> None:
    streams = {"JOBS": {"subjects": ["jobs.>"], "consumers": {"workers": {"ack_wait": "60s"}}}}
    function = _function(durable="workers", max_ack_pending=7)

    wanted = _by_name(wanted_by_manifest(_manifest(streams=streams, functions={"work": function})))

    config = wanted["consumer JOBS/workers"].config
    assert config["ack_wait"] == 60_000_000_000
    assert config["max_ack_pending"] == 7
    assert config["metadata"] == {"runtime.function": "work"}


def test_a_streams_consumer_that_contradicts_the_binding_is_refused() -> None:
    streams = {"JOBS": {"subjects": ["jobs.>"], "consumers": {"workers": {"ack_wait": "60s"}}}}
    function = _function(durable="workers", ack_wait="30s")

    with pytest.raises(ConfigError, match=r"consumer\.ack_wait"):
        wanted_by_manifest(_manifest(streams=streams, functions={"work": function}))


def test_two_functions_on_one_durable_are_refused() -> None:
    functions = {"one": _function(durable="d"), "two": _function(durable="d")}

    with pytest.raises(ConfigError, match="function one consumes from durable d"):
        wanted_by_manifest(_manifest(functions=functions))


@pytest.mark.parametrize("version", [(2, 10, 26), (2, 11, 11)])
def test_an_older_server_is_not_sent_the_field_of_message_schedules(
    version: tuple[int, int, int],
) -> None:
    assert "allow_msg_schedules" not in runtime_streams(version)[MAILBOX]


def test_the_mailbox_takes_message_schedules_from_2_12_on() -> None:
    assert runtime_streams((2, 12, 0))[MAILBOX]["allow_msg_schedules"] is True


def test_a_manifest_may_replicate_the_runtimes_own_streams() -> None:
    overrides = {"DEAD_LETTERS": StreamSpec(subjects=("dead_letters.>",), replicas=3)}

    wanted = _by_name(wanted_by_runtime((2, 15, 1), overrides))["stream DEAD_LETTERS"]

    assert wanted.config["num_replicas"] == 3
    assert wanted.config["max_age"] == 30 * 86_400_000_000_000


def test_a_manifest_may_not_give_the_runtimes_own_streams_other_subjects() -> None:
    overrides = {"MAILBOX": StreamSpec(subjects=("post.>",))}

    with pytest.raises(ConfigError, match=r"stream MAILBOX: subjects"):
        wanted_by_runtime((2, 15, 1), overrides)
