from typing import Any

import pytest

from runtime.broker.drift import drift, merged
from runtime.broker.stored import parse_time_ns
from runtime.broker.stream_configs import Wanted, wanted_by_manifest
from runtime.manifest.model import Manifest

NOW_NS = parse_time_ns("2026-01-02T00:00:00Z")
STATE = {
    "messages": 100,
    "bytes": 10_000,
    "first_ts": "2026-01-01T23:00:00.123456789Z",
    "most_per_subject": 40,
}


def _stream(**fields: Any) -> Wanted:
    spec = {"subjects": ["jobs.>"], **fields}
    [wanted] = wanted_by_manifest(Manifest.model_validate({"streams": {"JOBS": spec}}))
    return wanted


def _consumer(**fields: Any) -> Wanted:
    streams = {"JOBS": {"subjects": ["jobs.>"], "consumers": {"c": fields}}}
    _, wanted = wanted_by_manifest(Manifest.model_validate({"streams": streams}))
    return wanted


def _kinds(
    wanted: Wanted, found: dict[str, Any], state: dict[str, Any] | None = None
) -> dict[str, str]:
    changes = drift(wanted, found, STATE if state is None else state, now_ns=NOW_NS)
    return {change.field: change.kind for change in changes}


def test_a_missing_object_is_created() -> None:
    [change] = drift(_stream(), None)

    assert (change.object, change.field, change.kind) == ("stream JOBS", "", "create")


def test_what_agrees_gives_no_change() -> None:
    wanted = _stream(max_age="1h", max_bytes="1GB")

    assert drift(wanted, {**wanted.config, "allow_rollup_hdrs": False, "sealed": False}) == []


def test_fields_that_the_manifest_does_not_set_are_left_to_the_server() -> None:
    found = {**_stream().config, "max_age": 5, "max_bytes": 99, "storage": "memory"}

    assert drift(_stream(), found) == []


@pytest.mark.parametrize(
    ("fields", "found", "kind"),
    [
        ({"storage": "file"}, {"storage": "memory"}, {"storage": "immutable"}),
        ({"retention": "workqueue"}, {"retention": "limits"}, {"retention": "immutable"}),
        ({"retention": "limits"}, {"retention": "workqueue"}, {"retention": "immutable"}),
        ({"retention": "interest"}, {"retention": "limits"}, {"retention": "destructive"}),
        ({"retention": "limits"}, {"retention": "interest"}, {"retention": "update"}),
        ({"subjects": ["a.>"]}, {"subjects": ["a.b", "a.c.*"]}, {"subjects": "update"}),
        ({"subjects": ["a.*"]}, {"subjects": ["a.b", "a.c.d"]}, {"subjects": "destructive"}),
        ({"subjects": ["b", "a"]}, {"subjects": ["a", "b"]}, {}),
        ({"max_age": "30m"}, {"max_age": 0}, {"max_age": "destructive"}),
        ({"max_age": "2h"}, {"max_age": 0}, {"max_age": "update"}),
        ({"max_age": "0s"}, {"max_age": 1}, {"max_age": "update"}),
        ({"max_bytes": 9_999}, {"max_bytes": -1}, {"max_bytes": "destructive"}),
        ({"max_bytes": 10_000}, {"max_bytes": -1}, {"max_bytes": "update"}),
        ({"max_bytes": 9_999, "discard": "new"}, {"discard": "new"}, {"max_bytes": "update"}),
        ({"max_bytes": 9_999}, {"discard": "new"}, {"max_bytes": "update"}),
        ({"discard": "old"}, {"discard": "new", "max_msgs": 99}, {"discard": "destructive"}),
        ({"discard": "old"}, {"discard": "new", "max_msgs": 100}, {"discard": "update"}),
        ({"discard": "new"}, {"discard": "old", "max_msgs": 99}, {"discard": "update"}),
        (
            {"discard": "old"},
            {"discard": "new", "max_msgs_per_subject": 50, "max_age": 1},
            {"discard": "update"},
        ),
        ({"max_msgs": 99}, {"max_msgs": 200}, {"max_msgs": "destructive"}),
        ({"max_msgs": 200}, {"max_msgs": 100}, {"max_msgs": "update"}),
        ({"max_msgs_per_subject": 39}, {}, {"max_msgs_per_subject": "destructive"}),
        ({"max_msgs_per_subject": 40}, {}, {"max_msgs_per_subject": "update"}),
        ({"max_msg_size": 10}, {}, {"max_msg_size": "update"}),
        ({"duplicate_window": "1m"}, {}, {"duplicate_window": "update"}),
        ({"description": "jobs"}, {}, {"description": "update"}),
    ],
)
def test_each_stream_field_is_judged_by_what_its_change_costs(
    fields: dict[str, Any], found: dict[str, Any], kind: dict[str, str]
) -> None:
    assert _kinds(_stream(**fields), {**_stream().config, **found}) == kind


def test_lower_limits_on_an_empty_stream_drop_nothing() -> None:
    wanted = _stream(max_age="1s", max_msgs=1, max_bytes=1, max_msgs_per_subject=1)
    state = {"messages": 0, "bytes": 0, "first_ts": "0001-01-01T00:00:00Z"}

    assert set(_kinds(wanted, dict(_stream().config), state).values()) == {"update"}


@pytest.mark.parametrize(
    ("fields", "found", "kind"),
    [
        ({}, {"ack_policy": "none"}, {"ack_policy": "immutable"}),
        ({}, {"deliver_subject": "push.here"}, {"deliver_subject": "immutable"}),
        ({"deliver": "new"}, {"deliver_policy": "all"}, {"deliver_policy": "immutable"}),
        ({}, {"deliver_policy": "new"}, {}),
        ({}, {"backoff": [1, 2]}, {"backoff": "update"}),
        ({"ack_wait": "60s"}, {"ack_wait": 5}, {"ack_wait": "update"}),
        ({}, {"max_ack_pending": 1000}, {"max_ack_pending": "update"}),
        ({}, {"filter_subjects": None, "filter_subject": "a"}, {"filter_subjects": "update"}),
        ({"filter_subjects": ["a"]}, {"filter_subjects": None, "filter_subject": "a"}, {}),
        ({}, {"filter_subjects": None, "filter_subject": ">"}, {}),
    ],
)
def test_each_consumer_field_is_judged_by_whether_jetstream_can_change_it(
    fields: dict[str, Any], found: dict[str, Any], kind: dict[str, str]
) -> None:
    assert _kinds(_consumer(**fields), {**_consumer(**fields).config, **found}) == kind


@pytest.mark.parametrize(
    ("retention", "filters", "found", "kind"),
    [
        ("interest", ["jobs.a"], ["jobs.a", "jobs.b"], "destructive"),
        ("interest", ["jobs.a"], [], "destructive"),
        ("interest", ["jobs.*"], ["jobs.a", "jobs.b"], "update"),
        ("interest", [], ["jobs.a"], "update"),
        ("workqueue", ["jobs.a"], ["jobs.a", "jobs.b"], "update"),
        ("limits", ["jobs.a"], [], "update"),
    ],
)
def test_a_narrower_filter_drops_messages_where_a_stream_keeps_what_is_asked_for(
    retention: str, filters: list[str], found: list[str], kind: str
) -> None:
    consumers = {"c": {"filter_subjects": filters}}
    stream = {"subjects": ["jobs.>"], "retention": retention, "consumers": consumers}
    _, wanted = wanted_by_manifest(Manifest.model_validate({"streams": {"JOBS": stream}}))
    config = {**wanted.config, "filter_subject": "", "filter_subjects": found}

    assert _kinds(wanted, config) == {"filter_subjects": kind}


def test_an_update_keeps_what_the_manifest_does_not_speak_of() -> None:
    wanted = _stream(max_bytes=5)
    found = {**_stream().config, "max_age": 7, "compression": "s2", "deny_delete": True}

    config = merged(wanted, found)

    assert (config["max_bytes"], config["max_age"]) == (5, 7)
    assert (config["compression"], config["deny_delete"]) == ("s2", True)


def test_an_update_shortens_the_duplicate_window_with_the_age() -> None:
    config = merged(_stream(max_age="30s"), dict(_stream().config))

    assert config["duplicate_window"] == 30_000_000_000


def test_an_update_takes_back_a_backoff_and_a_filter() -> None:
    found = {**_consumer().config, "backoff": [1], "filter_subject": "a", "max_waiting": 512}
    found.pop("filter_subjects")

    config = merged(_consumer(), found)

    assert "backoff" not in config
    assert "filter_subject" not in config
    assert config["max_waiting"] == 512


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("1970-01-01T00:00:01Z", 1_000_000_000),
        ("2026-01-01T23:00:00.123456789Z", 1_767_308_400_123_456_789),
        ("1970-01-01T02:00:00.5+02:00", 500_000_000),
        ("1969-12-31T22:00:00-02:00", 0),
    ],
)
def test_a_servers_timestamp_keeps_its_nanoseconds(text: str, ns: int) -> None:
    assert parse_time_ns(text) == ns


@pytest.mark.parametrize("text", ["", "now", "2026-01-01", "2026-01-01T00:00:00"])
def test_a_text_that_is_not_a_timestamp_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a timestamp"):
        parse_time_ns(text)
