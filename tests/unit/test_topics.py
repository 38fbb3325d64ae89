import pytest

from functions.domain.topics import (
    BadTopic,
    Topic,
    downlink_subject,
    mqtt_topic,
    parse_topic,
    topic_from_subject,
)

LONGEST = "tenant/" + "t" * 64 + "/device/" + "d" * 128 + "/" + "m" * 32


@pytest.mark.parametrize(
    ("text", "topic", "subject"),
    [
        ("tenant/t/device/d/telemetry", ("t", "d", "telemetry"), "telemetry.t"),
        ("tenant/a-B_9/device/d.1:x-y/event", ("a-B_9", "d.1:x-y", "event"), "telemetry.a-B_9"),
        ("tenant/t/device/d/shadow/reported", ("t", "d", "shadow/reported"), "shadow.t"),
        ("tenant/t/device/d/commands/ack", ("t", "d", "commands/ack"), "commands.t"),
        (LONGEST, ("t" * 64, "d" * 128, "m" * 32), "telemetry." + "t" * 64),
    ],
)  # fmt: skip
def test_a_topic_names_tenant_device_and_type(
    text: str, topic: tuple[str, str, str], subject: str
) -> None:
    parsed = parse_topic(text)
    assert isinstance(parsed, Topic)
    assert parsed == topic
    assert parsed.text == text
    assert parsed.stream_subject == subject


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "tenant",
        "tenant/t/device/d",
        "tenant/t/device/d/",
        "/tenant/t/device/d/telemetry",
        "tenant/t/device/d/telemetry/",
        "tenant//device/d/telemetry",
        "tenant/t/device//telemetry",
        "tenant/t/gadget/d/telemetry",
        "Tenant/t/device/d/telemetry",
        "tenant/*/device/d/telemetry",
        "tenant/t/device/>/telemetry",
        "tenant/+/device/d/telemetry",
        "tenant/t/device/#",
        "tenant/t.u/device/d/telemetry",
        "tenant/t/device/d d/telemetry",
        "tenant/t/device/d\n/telemetry",
        "tenant/t/device/d/telemetry\n",
        "tenant/t/device/d\x00/telemetry",
        "tenant/t/device/d\x7f/telemetry",
        "tenant/t/device/dé/telemetry",
        "tenant/t/device/d/Telemetry",
        "tenant/t/device/d/shadow/other",
        "tenant/t/device/d/shadow/reported/x",
        "tenant/" + "t" * 65 + "/device/d/telemetry",
        "tenant/t/device/" + "d" * 129 + "/telemetry",
        "tenant/t/device/./telemetry",
        "tenant/t/device/../telemetry",
        "tenant/t/device/d/" + "m" * 33,
        "x" * 100_000,
        None,
        5,
        ["tenant/t/device/d/telemetry"],
    ],
)
def test_any_other_text_is_not_a_topic_and_the_reason_repeats_none_of_it(text: object) -> None:
    parsed = parse_topic(text)
    assert isinstance(parsed, BadTopic)
    assert "\n" not in parsed.reason
    assert "\x00" not in parsed.reason


@pytest.mark.parametrize(
    ("subject", "topic"),
    [
        ("telemetry.t.d", ("t", "d", "telemetry")),
        ("telemetry.t.d.heartbeat", ("t", "d", "heartbeat")),
        ("telemetry.t.d//1", ("t", "d.1", "telemetry")),
        ("telemetry.t.d//1//2.event", ("t", "d.1.2", "event")),
        ("shadow.t.d.reported", ("t", "d", "shadow/reported")),
        ("commands.t.d//1.ack", ("t", "d.1", "commands/ack")),
    ],
)
def test_a_raw_subject_carries_the_topic(subject: str, topic: tuple[str, str, str]) -> None:
    assert topic_from_subject(subject) == topic


def test_the_enveloped_form_carries_no_topic_in_its_subject() -> None:
    assert topic_from_subject("telemetry.t") is None


@pytest.mark.parametrize(
    "subject",
    [
        "telemetry.t.*",
        "telemetry.*.d",
        "telemetry.t.d/1",
        "telemetry.t.d.x.y",
        "telemetry.t.d.Upper",
        "telemetry.t..x",
        "shadow.t.d",
        "shadow.t.d.desired",
        "commands.t.d.x",
        "other.t.d",
    ],
)
def test_a_raw_subject_of_a_wrong_shape_is_no_topic(subject: str) -> None:
    assert isinstance(topic_from_subject(subject), BadTopic)


@pytest.mark.parametrize(
    ("subject", "topic"),
    [
        ("tenant.t.device.d.x", "tenant/t/device/d/x"),
        ("tenant.t.device.d//1.x", "tenant/t/device/d.1/x"),
        ("tenant./.x", "tenant//x"),
        ("/.tenant.x", "/tenant/x"),
        ("tenant./", "tenant/"),
    ],
)
def test_the_topic_behind_a_subject_of_the_mqtt_listener(subject: str, topic: str) -> None:
    assert mqtt_topic(subject) == topic


def test_a_downlink_keeps_the_dots_of_its_device() -> None:
    subject = downlink_subject("t", "d.1", "shadow/delta")
    assert subject == "tenant.t.device.d//1.shadow.delta"
    assert mqtt_topic(subject) == "tenant/t/device/d.1/shadow/delta"
