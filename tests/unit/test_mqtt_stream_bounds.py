"""What is a device's share of nats-server's streams for MQTT, and how a session is removed."""

import orjson
import pytest

from functions.device_auth.stream_bounds import beyond_share, device_of, share_filter
from functions.domain.mqtt_session_records import (
    SessionRecord,
    read_record,
    record_subject,
    removal_of,
)


@pytest.mark.parametrize(
    ("subject", "share"),
    [
        ("$MQTT.msgs.tenant.t.device.d.metrics", "$MQTT.msgs.tenant.t.device.d.>"),
        ("$MQTT.rmsgs.tenant.t.device.d//1.a.b", "$MQTT.rmsgs.tenant.t.device.d//1.>"),
        ("$MQTT.rmsgs.shadow.t.d.name.n.update", "$MQTT.rmsgs.shadow.t.d.>"),
        ("$MQTT.rmsgs.telemetry.t.d.event", "$MQTT.rmsgs.telemetry.t.d.>"),
        ("$MQTT.rmsgs.telemetry.t.d", None),
        ("$MQTT.rmsgs.elsewhere.t.d.event", None),
        ("$MQTT.rmsgs", None),
        ("$MQTT.qos2.in.t/d.7", "$MQTT.qos2.in.t/d.*"),
        ("$MQTT.qos2.in.t/d/3.65535", "$MQTT.qos2.in.t/d/3.*"),
    ],
)
def test_a_message_is_of_its_device_s_share(subject: str, share: str | None) -> None:
    assert share_filter(subject) == share


@pytest.mark.parametrize(
    ("share", "device"),
    [
        ("$MQTT.rmsgs.tenant.t.device.d//1.>", ("t", "d.1")),
        ("$MQTT.rmsgs.shadow.t.d.>", ("t", "d")),
        ("$MQTT.qos2.in.t/d.*", None),
    ],
)
def test_a_share_names_its_device(share: str, device: tuple[str, str] | None) -> None:
    assert device_of(share) == device


def test_a_device_is_beyond_its_share_by_all_its_subjects_together() -> None:
    subjects = {
        **{f"$MQTT.msgs.tenant.t.device.hostile.{number}": 1 for number in range(11)},
        "$MQTT.msgs.tenant.t.device.healthy.x": 10,
        "$MQTT.msgs.other": 1000,
    }

    assert beyond_share(subjects, 10) == ["$MQTT.msgs.tenant.t.device.hostile.>"]
    assert beyond_share({}, 10) == []


def test_a_record_leads_to_everything_of_its_session() -> None:
    content = {
        "id": "t/d",
        "cons": {"x": {"durable_name": "abc_1"}, "y": {"durable_name": "a.>"}, "z": None},
    }
    record = read_record(record_subject("t/d"), orjson.dumps(content))

    assert record == SessionRecord("t/d", record_subject("t/d").rpartition(".")[2], ("abc_1",))
    assert [subject for subject, _ in removal_of(record)] == [
        "CONSUMER.DELETE.$MQTT_msgs.abc_1",
        f"CONSUMER.DELETE.$MQTT_out.$MQTT_PUBREL_{record.hash}",
        "STREAM.PURGE.$MQTT_out",
    ]


@pytest.mark.parametrize(
    ("subject", "data"),
    [
        ("$MQTT.sess.*", b"{}"),
        ("$MQTT.sess.", b"{}"),
        ("$MQTT.msgs.abc", b"{}"),
        ("$MQTT.sess.abc", b""),
        ("$MQTT.sess.abc", b"[]"),
    ],
)
def test_what_is_no_record_leads_to_nothing(subject: str, data: bytes) -> None:
    assert read_record(subject, data) is None
