"""Messages: their content, states, and the manifest that sends them."""

import json
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from functions.messages.accepting import SendSms
from functions.messages.contents import QUEUES, OutMessage, QueuedEmail, QueuedSms, read_content
from functions.messages.lifecycle import FINAL, RESENDS, Status, leaves
from runtime import manifest
from tests.support.documentation import ROOT, in_code, read_blocks, read_table

PAGE = ROOT / "docs" / "messages.md"
API = "/v1/messages"
SMS = {"to": "+436641234567", "body": "hello"}
GIB, DAY_S = 1_000_000_000, 86_400


@pytest.fixture(scope="module")
def shipped() -> manifest.Manifest:
    return manifest.read([ROOT / "manifests" / "messaging.yaml"], {})


def test_a_content_is_the_same_by_http_from_the_queue_and_from_its_row() -> None:
    by_http = SendSms.model_validate(SMS | {"tenant_id": "acme", "from": "ACME"})
    out = OutMessage("acme", "m1", by_http)
    queued = QueuedSms.model_validate_json(out.encode())
    assert (queued.message_id, queued.tenant_id, queued.sender) == ("m1", "acme", "ACME")
    from_row = read_content("sms", json.dumps(by_http.plain()))
    assert by_http.fingerprint() == queued.fingerprint() == from_row.fingerprint()
    assert by_http.fingerprint() != QueuedSms.model_validate(SMS).fingerprint()


def test_a_field_that_a_later_version_adds_does_not_change_a_fingerprint() -> None:
    class Later(QueuedSms):
        campaign: str | None = None

    assert Later.model_validate(SMS).fingerprint() == QueuedSms.model_validate(SMS).fingerprint()


@pytest.mark.parametrize(
    "written",
    [
        {"messageId": "a", "tenantId": "t", "to": "+12", "message": "x"},
        {"message_id": "a", "tenant_id": "t", "to": "+12", "body": "x", "campaign": 7},
        {"smsId": "a", "tenantId": "t", "to": "+12", "text": "x"},
    ],
)
def test_programs_write_text_messages_in_their_own_ways(written: dict[str, Any]) -> None:
    read = QueuedSms.model_validate(written)
    assert (read.message_id, read.tenant_id, read.to, read.body) == ("a", "t", "+12", "x")


def test_an_email_is_read_with_one_recipient_or_several() -> None:
    form = {"emailId": "e", "tenantId": "t", "to": "a@b.example", "subject": "s", "body": "x"}
    read = QueuedEmail.model_validate(form)
    assert (read.message_id, read.to, read.text) == ("e", ("a@b.example",), "x")
    assert QueuedEmail.model_validate_json(json.dumps(read.plain())).fingerprint() == (
        read.fingerprint()
    )


@pytest.mark.parametrize("to", ["+0123", "06641234567", "+4366412345671234", "+12\n", "+1 2", ""])
def test_a_number_that_is_none_is_refused_and_not_repeated(to: str) -> None:
    with pytest.raises(ValidationError) as refused:
        QueuedSms.model_validate(SMS | {"to": to})
    assert not to or to not in str(refused.value)


def test_nothing_but_a_person_leaves_a_final_state() -> None:
    every: tuple[Status, ...] = get_args(Status)
    for status in every:
        assert not FINAL & set(leaves(status)), status
        assert status not in leaves(status)
    assert set(RESENDS) == (FINAL - {"delivered"}) | {"unknown"}


def test_streams_and_consumers_are_those_of_the_queues(shipped: manifest.Manifest) -> None:
    sizes = {"SMS": 10 * GIB, "EMAIL": 10 * GIB, "WEBHOOKS": 5 * GIB}
    for queue in QUEUES.values():
        stream = shipped.streams[queue.stream]
        assert {queue.send, queue.status} <= set(stream.subjects)
        assert (stream.retention, stream.storage, stream.discard) == ("limits", "file", "old")
        assert (stream.max_age, stream.max_msgs) == (7 * DAY_S, 1_000_000)
        assert stream.max_bytes == sizes[queue.stream]
    assert "webhooks.retry" in shipped.streams["WEBHOOKS"].subjects
    for name, spec in shipped.functions.items():
        if spec.consumer is not None:
            [queue] = [one for one in QUEUES.values() if one.stream == spec.consumer.stream]
            assert spec.consumer.durable == queue.durable, name
            assert queue.send in spec.consumer.filter_subjects, name
            assert spec.consumer.ack_wait == 30, name
            assert spec.retry.max_attempts == 5, name
            assert (spec.settings or {}).get("attempts", 5) == 5, name


def test_the_page_lists_every_operation_and_its_fields(shipped: manifest.Manifest) -> None:
    declared = {
        f"{bound.http.method} {bound.http.path}"
        for spec in shipped.functions.values()
        if (bound := spec.endpoint) and bound.http and bound.http.path.startswith(API)
    }
    documented = {in_code(row[0])[0] for row in read_table(PAGE, "Sending")}
    assert documented == declared


def test_every_endpoint_of_a_tenant_takes_a_tenants_key(shipped: manifest.Manifest) -> None:
    for name, spec in shipped.functions.items():
        if spec.endpoint is not None:
            assert spec.endpoint.subject.startswith("management."), name
            if http := spec.endpoint.http:
                assert http.auth == ("tenant" if http.path.startswith(API) else "admin"), name


def test_the_page_lists_every_status() -> None:
    rows = read_table(PAGE, "Status")
    assert [in_code(row[0])[0] for row in rows] == [
        "queued",
        "sending",
        "sent",
        "delivered",
        "failed",
        "refused",
        "unknown",
    ]
    [shown] = [block for block in read_blocks(PAGE) if block.language == "json"]
    assert json.loads(shown.text)["status"] in get_args(Status)
