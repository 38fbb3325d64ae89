import re
from datetime import datetime

import orjson
import pytest
import structlog

from runtime.broker.micro_protocol import (
    Answer,
    EndpointStats,
    MicroEndpoint,
    ServiceIdentity,
    describe,
)
from runtime.errors import ConfigError


def identity(**changes: object) -> ServiceIdentity:
    given: dict[str, object] = {
        "name": "host",
        "version": "1.0.0",
        "description": "",
        "metadata": {},
    }
    return ServiceIdentity(**{**given, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "version", ["1.0.0", "0.0.1", "1.2.3-rc.1", "1.2.3+b5", "10.20.30-a-b.7+x"]
)
def test_semantic_versions_are_taken(version: str) -> None:
    assert identity(version=version).version == version


@pytest.mark.parametrize(
    "version", ["", "1", "1.0", "v1.0.0", "01.0.0", "1.0.0-", "1.0.0\n", "\u0661.0.0"]
)
def test_other_versions_are_refused_with_a_remedy(version: str) -> None:
    with pytest.raises(ConfigError, match=r"write it like 1\.4\.0"):
        identity(version=version)


@pytest.mark.parametrize("name", ["", "a.b", "a b", "*", "ü", "a\n", "$x"])
def test_names_that_cannot_stand_in_a_subject_are_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        identity(name=name)
    with pytest.raises(ConfigError):
        MicroEndpoint(name, "a.b")


def test_two_instances_never_share_an_id() -> None:
    assert identity().id != identity().id


def test_every_value_of_the_metadata_becomes_a_string() -> None:
    values = {"count": 3, "open": True, "none": None, "share": 0.5, "list": [1], 7: "seven"}
    found = orjson.loads(describe("PING", identity(metadata=values), []))
    assert found["metadata"] == {
        "count": "3",
        "open": "true",
        "none": "",
        "share": "0.5",
        "list": "[1]",
        "7": "seven",
    }


def test_ping_says_who_is_there_and_no_more() -> None:
    found = orjson.loads(describe("PING", identity(), []))
    assert found["type"] == "io.nats.micro.v1.ping_response"
    assert set(found) == {"type", "name", "id", "version", "metadata"}


def test_nothing_in_info_is_null() -> None:
    endpoint = MicroEndpoint("ingest", "telemetry.>", queue_group=None)
    found = orjson.loads(describe("INFO", identity(), [endpoint]))
    assert found["description"] == ""
    assert found["endpoints"] == [
        {"name": "ingest", "subject": "telemetry.>", "queue_group": "", "metadata": {}}
    ]


def test_statistics_carry_what_the_command_line_demands() -> None:
    counters = EndpointStats()
    counters.record(9_000, requests=3)
    counters.record_error("400:BAD_JSON", errors=2)
    endpoint = MicroEndpoint("get", "get.it", counters=counters, stats=lambda: {"pending": 5})
    found = orjson.loads(describe("STATS", identity(), [endpoint]))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", found["started"])
    assert datetime.fromisoformat(found["started"]).tzinfo is not None
    assert found["endpoints"] == [
        {
            "name": "get",
            "subject": "get.it",
            "queue_group": "q",
            "num_requests": 3,
            "num_errors": 2,
            "last_error": "400:BAD_JSON",
            "processing_time": 9000,
            "average_processing_time": 3000,
            "data": {"pending": 5},
        }
    ]


def test_an_endpoint_that_was_never_asked_has_an_empty_last_error() -> None:
    found = orjson.loads(describe("STATS", identity(), [MicroEndpoint("get", "get.it")]))
    assert found["endpoints"][0]["last_error"] == ""
    assert found["endpoints"][0]["average_processing_time"] == 0


def test_live_values_are_asked_for_each_time() -> None:
    lag = {"pending": 1}
    endpoint = MicroEndpoint("get", "get.it", metadata=lambda: lag)
    describe("INFO", identity(), [endpoint])
    lag["pending"] = 2
    found = orjson.loads(describe("INFO", identity(), [endpoint]))
    assert found["endpoints"][0]["metadata"] == {"pending": "2"}


def test_live_values_that_cannot_be_read_do_not_hide_the_service() -> None:
    def broken() -> dict[str, object]:
        raise RuntimeError

    endpoint = MicroEndpoint("get", "get.it", metadata=broken, stats=broken)
    with structlog.testing.capture_logs() as lines:
        found = orjson.loads(describe("STATS", identity(), [endpoint]))
    assert found["endpoints"][0]["data"] == {}
    assert [line["log_level"] for line in lines] == ["error"]


def test_a_failure_tells_its_code_in_the_headers_and_the_rest_in_json() -> None:
    answer = Answer.failure(404, "UNKNOWN_DEVICE", "there is no such device", "ab12")
    assert answer.wire_headers() == {
        "Nats-Service-Error-Code": "404",
        "Nats-Service-Error": "UNKNOWN_DEVICE",
    }
    assert orjson.loads(answer.data) == {
        "code": "UNKNOWN_DEVICE",
        "detail": "there is no such device",
        "event_id": "ab12",
    }


def test_no_header_value_breaks_out_of_its_line() -> None:
    answer = Answer(b"", {"Note": "a\r\nEvil: é"}, (400, "BAD\r\nEvil: 1"))
    headers = answer.wire_headers() or {}
    assert all(
        value.isascii() and "\n" not in value and "\r" not in value for value in headers.values()
    )


def test_an_answer_without_headers_sends_none() -> None:
    assert Answer(b"x").wire_headers() is None
