"""Delivery jobs, and the body of a webhook."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from functions.domain.identifiers import job_id
from functions.route_delivery.bodies import encode_event
from functions.route_delivery.job import Job, SeedJob, route_key
from runtime import Message

ROUTE = "0b0e0f5c-9f6e-4f0c-8a53-2f5c3f3a7d11"


def job(**fields: Any) -> Job:
    return Job.model_validate(
        {
            "job_id": "TELEMETRY-1-2-r",
            "route_id": ROUTE,
            "tenant_id": "test",
            "device_id": "dev1",
            "topic": "tenant/test/device/dev1/telemetry",
            "msg_type": "telemetry",
            "payload": {"metrics": {"temp": 22}},
            "stored_at": "2026-08-01T12:00:00.123456Z",
        }
        | fields
    )


def test_the_body_says_what_happened_when_and_where() -> None:
    assert json.loads(encode_event(job())) == {
        "type": "device.telemetry",
        "timestamp": "2026-08-01T12:00:00.123456Z",
        "data": {
            "tenant_id": "test",
            "device_id": "dev1",
            "msg_type": "telemetry",
            "topic": "tenant/test/device/dev1/telemetry",
            "payload": {"metrics": {"temp": 22}},
        },
    }


def test_a_message_type_of_two_levels_becomes_a_dotted_type() -> None:
    assert json.loads(encode_event(job(msg_type="shadow/reported")))["type"] == (
        "device.shadow.reported"
    )


def test_the_device_secret_does_not_reach_a_receiver() -> None:
    body = encode_event(job(payload={"site_id": "s1", "provision_token": "tok"}))
    assert json.loads(body)["data"]["payload"] == {"site_id": "s1"}


@pytest.mark.parametrize("payload", [None, 1, "text", [1, {"provision_token": "kept"}], 2**80])
def test_a_payload_that_is_not_an_object_is_sent_unchanged(payload: Any) -> None:
    assert json.loads(encode_event(job(payload=payload)))["data"]["payload"] == payload


@pytest.mark.parametrize("payload", ["NaN", "Infinity", "[1, -Infinity]"])
def test_a_value_that_json_lacks_is_kept_in_a_job_and_makes_no_body(payload: str) -> None:
    original = job().model_dump_json().replace('{"metrics":{"temp":22}}', payload)
    again = Job.model_validate_json(Job.model_validate_json(original).model_dump_json())
    with pytest.raises(ValueError, match="JSON"):
        encode_event(again)


def test_the_job_id_is_the_same_for_the_same_stored_message_and_route() -> None:
    message = Message("routes.t", b"", stream="ROUTES", sequence=7, stored_at_ns=9)

    assert job_id(message.origin, "r") == "ROUTES-7-9-r"


@pytest.mark.parametrize("bad", ["", "a.b", "a b", "ä", "x" * 256])
def test_a_job_id_that_a_signature_could_not_cover_is_refused(bad: str) -> None:
    with pytest.raises(ValidationError):
        job(job_id=bad)


@pytest.mark.parametrize("tenant_id", ["", "a.b", "*", ">", "a/b"])
def test_a_tenant_id_that_is_more_than_a_token_is_refused(tenant_id: str) -> None:
    with pytest.raises(ValidationError):
        job(tenant_id=tenant_id)


def test_no_message_says_that_its_payload_is_all_that_is_sent() -> None:
    assert not job(is_whole=True).is_whole
    assert json.loads(encode_event(job(is_whole=True)))["type"] == "device.telemetry"
    transformed = job().model_copy(update={"payload": [1], "is_whole": True})
    assert encode_event(transformed) == b"[1]"


def test_of_an_inline_route_only_the_id_is_kept() -> None:
    seed = SeedJob.model_validate(
        {
            "route": {"id": 7, "destination_config": {"secret": "s"}},
            "tenant_id": "test",
            "topic": "t",
            "payload": {},
        }
    )
    assert seed.route.model_dump() == {"id": "7"}


def test_an_id_that_no_route_can_have_has_no_key() -> None:
    assert route_key("7") is None
    assert str(route_key(ROUTE)) == ROUTE
