"""Which messages and subjects are a tenant's, and in which order its tables are emptied."""

import pytest

from functions.erasure.belonging import StoredMessage, is_of_tenant, purges, tail_of
from functions.erasure.tables import TenantTable, referring_first
from runtime.broker.headers import origin_headers
from runtime.message import Message


def test_only_subjects_of_families_with_a_tenant_are_purged() -> None:
    subjects = [
        "telemetry.acme",
        "telemetry.acme.d1.heartbeat",
        "shadow.acme.d1.reported",
        "routes.acme.webhook.key",
        "mailbox.acme.deliver",
        "sms.acme",
        "telemetry.acme2",
        "telemetry.other.acme",
        "$MQTT.msgs.tenant.acme.device.d1.commands",
        "$MQTT.sess.tenant.acme.device",
        "$MQTT.rmsgs.tenant.other.device.acme",
        "$MQTT.rmsgs.telemetry.acme.d1.heartbeat",
        "$MQTT.msgs.telemetry.other.acme",
        "$MQTT.qos2.in.acme/d1.7",
        "$MQTT.out.pubrel.acme",
    ]
    assert purges(subjects, "acme") == {
        "telemetry.acme",
        "telemetry.acme.>",
        "shadow.acme.>",
        "routes.acme.>",
        "$MQTT.msgs.tenant.acme.>",
        "$MQTT.rmsgs.telemetry.acme.>",
    }


@pytest.mark.parametrize("tenant_id", ["ready", "parked", "send", "events"])
def test_a_tenant_with_the_name_of_a_token_purges_nothing_of_others(tenant_id: str) -> None:
    subjects = ["mailbox.ready.ingest", "mailbox.parked.f.1", "sms.send", "analytics.events.a"]
    assert purges(subjects, tenant_id) == frozenset()


def copy_of(subject: str, data: bytes = b"x") -> StoredMessage:
    """A dead letter, or another copy that the runtime makes of a message."""
    message = Message(subject, data, stream="S", sequence=7, stored_at_ns=1)
    lines = [f"{name}: {value}" for name, value in origin_headers(message).items()]
    block = "\r\n".join(["NATS/1.0", *lines, "\r\n"])
    return StoredMessage(1, "dead_letters.f", block.encode(), data)


def staged(subject: str) -> bytes:
    return f"NATS/1.0\r\nNmqtt-Pub: 2\r\nNmqtt-Subject: {subject}\r\n\r\n".encode()


@pytest.mark.parametrize(
    ("message", "is_its_own"),
    [
        (copy_of("telemetry.acme"), True),
        (copy_of("telemetry.acme.d1"), True),
        (copy_of("routes.acme.webhook"), True),
        (copy_of("telemetry.acme2"), False),
        # The subject says who was proven to send it, whatever the payload claims.
        (copy_of("telemetry.other.d1", b'{"tenant_id": "acme"}'), False),
        (copy_of("routes.other.webhook", b'{"tenant_id": "acme", "cut'), False),
        (copy_of("telemetry.acme.d1", b'{"tenant_id": "other"}'), True),
        (StoredMessage(1, "shadow.other.d1.reported", b"", b'{"tenant_id":"acme"}'), False),
        (copy_of("sms.send", b'{"tenant_id": "acme", "text": "hello"}'), True),
        (copy_of("sms.send", b'{"tenant_id": "other", "a": {"tenant_id": "acme"}}'), False),
        (copy_of("sms.send", b'{"tenant_id" : "acme", "text": "cut of'), True),
        (copy_of("sms.send", b'{"tenant_id": "acme2", "text": "cut of'), False),
        (copy_of("sms.send", b"[1]"), False),
        (StoredMessage(1, "sms.send", b"", b'{"tenant_id":"acme"}'), True),
        (
            StoredMessage(
                *(1, "sms.send", b"NATS/1.0\r\nRuntime-Subject: telemetry.acme\r\n\r\n"),
                b'{"tenant_id":"other"}',
            ),
            False,
        ),
        (StoredMessage(1, "dead_letters.f.tail", b"", b'"a": {"tenant_id": "acme"}}'), False),
        (
            StoredMessage(
                *(1, "dead_letters.f.tail", b"NATS/1.0\r\nRuntime-Subject: telemetry.acme\r\n\r\n"),
                b"\xff",
            ),
            True,
        ),
        (StoredMessage(1, "routes.acme.sms", b"", b""), True),
        (StoredMessage(1, "mailbox.acme.sms", b"", b""), False),
        (StoredMessage(1, "$MQTT.sess.x", b"", b'{"id":"acme/d1"}'), True),
        (StoredMessage(1, "$MQTT.sess.x", b"", b'{"id":"acme2/d1"}'), False),
        (StoredMessage(1, "$MQTT.sess.x", b"", b'{"id":"other/d1","tenant_id":"acme"}'), False),
        (StoredMessage(1, "$MQTT.sess.x", b"", b'"tenant_id": "acme"'), False),
        (StoredMessage(1, "$MQTT.qos2.in.acme/d1.7", b"", b""), True),
        (StoredMessage(1, "$MQTT.qos2.in.acme2/d1.7", b"", b""), False),
        (StoredMessage(1, "$MQTT.qos2.in.gateway.7", staged("tenant.acme.device.d1.x"), b""), True),
        (StoredMessage(1, "$MQTT.qos2.in.gateway.7", staged("telemetry.acme2.d1"), b""), False),
        (StoredMessage(1, "$MQTT.qos2.in.other/d.7", staged("telemetry.acme.d1"), b""), False),
        (StoredMessage(1, "$MQTT.sess.x", b"", b"no JSON"), False),
        (StoredMessage(1, "$MQTT.sess.x", b"", b'{"id":7,"cons":{"a":7}}'), False),
        (StoredMessage(1, "a", b"NATS/1.0\r\nRuntime-Subject\r\n:\r\n\xff", b"\xff"), False),
    ],
)
def test_a_message_is_its_tenants(message: StoredMessage, is_its_own: bool) -> None:
    assert is_of_tenant(message, "acme") is is_its_own


@pytest.mark.parametrize(
    ("value", "tail"), [("12", 12), ("end", None), ("-1", None), ("1" * 20, None)]
)
def test_a_cut_message_names_its_end(value: str, tail: int | None) -> None:
    block = f"NATS/1.0\r\nRuntime-Tail: {value}\r\n\r\n".encode()
    assert tail_of(StoredMessage(1, "dead_letters.f", block, b"")) == tail


def test_tables_that_refer_to_others_come_first() -> None:
    names = ["answers", "commands", "devices", "elsewhere"]
    tables = [TenantTable(name, name, "tenant_id") for name in sorted(names, reverse=True)]
    references = [("answers", "commands"), ("commands", "devices"), ("devices", "tenants")]
    ordered = [table.name for table in referring_first(tables, references)]
    assert [name for name in ordered if name != "elsewhere"] == names[:3]


def test_tables_in_a_circle_are_all_emptied() -> None:
    tables = [TenantTable(name, name, "tenant_id") for name in "ab"]
    assert len(referring_first(tables, [("a", "b"), ("b", "a")])) == 2
