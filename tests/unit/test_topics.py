import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.domain.topics import (
    SHADOW_ANSWERS,
    SHADOW_REQUESTS,
    BadTopic,
    Topic,
    downlink_subject,
    is_device_id,
    mqtt_topic,
    parse_topic,
    raw_subject,
    shadow_kind,
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
        ("shadow.t.d.get", ("t", "d", "shadow/get")),
        ("shadow.t.d//1.name.n.update", ("t", "d.1", "shadow/name/n/update")),
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
        "shadow.t.d.delta",
        "shadow.t.d.name.n",
        "shadow.t.d.name.n.delta",
        "shadow.t.d.name.n.update.accepted",
        "shadow.t.d.update.accepted",
        "shadow.t.d.name.*.get",
        "telemetry.t.d.",
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


REQUESTS = sorted(SHADOW_REQUESTS)
NAMES = st.text("AZaz09_:-", min_size=1, max_size=64)
IDS = st.from_regex(r"[A-Za-z0-9_.:-]{1,128}", fullmatch=True).filter(is_device_id)


@given(IDS, NAMES | st.just(""), st.sampled_from(REQUESTS))
def test_every_request_about_a_shadow_has_one_topic_and_one_subject(
    device_id: str, name: str, request: str
) -> None:
    topic = Topic("t", device_id, shadow_kind(name, request))
    assert (topic.family, topic.is_downlink) == ("shadow", False)
    assert parse_topic(topic.text) == topic
    subject = raw_subject(topic)
    assert subject.startswith("shadow.t.")
    assert topic_from_subject(subject) == topic
    # What nats-server's MQTT listener makes of the topic, before the mappings.
    assert mqtt_topic(downlink_subject(*topic)) == topic.text


@given(IDS, NAMES | st.just(""), st.sampled_from(sorted(SHADOW_ANSWERS)))
def test_no_answer_about_a_shadow_is_a_message_of_a_device(
    device_id: str, name: str, answer: str
) -> None:
    topic = Topic("t", device_id, shadow_kind(name, answer))
    assert parse_topic(topic.text) == topic
    assert topic.is_downlink
    assert topic.stream_subject == "telemetry.t"
    again = topic_from_subject(raw_subject(topic))
    assert isinstance(again, Topic)
    assert again.is_downlink
    assert mqtt_topic(downlink_subject(*topic)) == topic.text


LEVELS = st.lists(
    st.sampled_from(["shadow", "name", "update", "get", "a", "", "accepted", "+", "#", "*", ">"]),
    min_size=1,
    max_size=5,
)


@given(LEVELS)
def test_a_topic_is_of_a_device_or_to_it_or_none(levels: list[str]) -> None:
    kind = "/".join(levels)
    topic = parse_topic(f"tenant/t/device/d/{kind}")
    if isinstance(topic, BadTopic):
        return
    assert topic.msg_type == kind
    assert "" not in levels
    assert not set(levels) & {"+", "#", "*", ">"}
    assert topic.is_downlink == (len(levels) > 1 and levels[-1] == "accepted")


def test_the_longest_topics_are_read_as_all_others() -> None:
    ids = ("t" * 64, "d" * 128)
    longest = Topic(*ids, shadow_kind("n" * 64, "update/documents"))
    assert parse_topic(longest.text) == longest
    assert len(longest.text) == 301


@pytest.mark.parametrize(
    "kind",
    [
        "shadow/name/update",
        "shadow/name//update",
        "shadow/name/n",
        "shadow/name/n/other",
        "shadow/name/n/update/x",
        "shadow/name/n.m/update",
        "shadow/name/n m/get",
        "shadow/name/" + "n" * 65 + "/get",
        "shadow/name/é/get",
        "shadow/name/n\x00/get",
        "shadow/Update",
        "shadow/update/",
        "shadow/update/delta",
    ],
)
def test_no_other_text_is_a_type_of_shadow_messages(kind: str) -> None:
    assert isinstance(parse_topic(f"tenant/t/device/d/{kind}"), BadTopic)
