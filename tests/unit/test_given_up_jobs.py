"""What a tenant is told of jobs that were given up."""

from datetime import UTC, datetime
from typing import Any

import orjson

from functions.route_delivery.given_up import (
    GivenUp,
    LastAttempt,
    first_of_routes,
    make_notice,
)
from functions.route_delivery.job import Job

NOW = datetime(2026, 8, 1, 12, 34, tzinfo=UTC)


def given_up(number: int = 1, **fields: Any) -> GivenUp:
    job = {
        "job_id": f"T-{number}-1-r",
        "route_id": "r",
        "tenant_id": "test",
        "device_id": "dev1",
        "topic": "tenant/test/device/dev1/telemetry",
        "payload": {"provision_token": "t0ken", "metrics": {"temp": 22}},
        "stored_at": NOW,
    }
    return GivenUp(Job.model_validate(job | fields), "ATTEMPTS_EXHAUSTED")


def test_the_jobs_of_a_route_are_one_notice_with_their_number() -> None:
    jobs = [given_up(1), given_up(2), given_up(3, route_id="s"), given_up(4, tenant_id="other")]
    found = [(one.job.job_id, count) for one, count in first_of_routes(jobs)]
    assert found == [("T-4-1-r", 1), ("T-1-1-r", 2), ("T-3-1-r", 1)]


def test_a_notice_has_topic_payload_and_codes_and_no_secret() -> None:
    notice = make_notice(given_up(), LastAttempt(9, "HTTP_500", 500), count=3, now=NOW)
    assert (notice.tenant_id, notice.kind, notice.count) == ("test", "job_given_up", 3)
    assert notice.key == "r/given_up/2026-08-01T12"
    assert notice.data["payload"] == {"metrics": {"temp": 22}}
    assert notice.data["topic"] == "tenant/test/device/dev1/telemetry"
    assert notice.data["last_error_code"] == "HTTP_500"
    assert "t0ken" not in orjson.dumps(notice.data).decode()


def test_a_payload_that_is_large_or_that_json_does_not_have_is_left_out() -> None:
    for payload in ({"a": "x" * 5000}, {"a": float("nan"), "b": b"\xff".decode("latin-1")}, "\0"):
        notice = make_notice(given_up(payload=payload), None, count=1, now=NOW)
        text = orjson.dumps(notice.data)
        assert len(text) < 1000
        assert b"\\u0000" not in text


def test_a_notice_about_a_notice_is_not_routed() -> None:
    job = given_up(topic="tenant/test/notices/endpoint_failing")
    assert not make_notice(job, None, count=1, now=NOW).is_routed
    assert make_notice(given_up(), None, count=1, now=NOW).is_routed
