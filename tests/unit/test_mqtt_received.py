"""How the MQTT bridge reads PUBLISH packets: exactly, whatever they hold, and without delay."""

import time
from struct import pack

from hypothesis import example, given
from hypothesis import strategies as st
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from functions.domain.downlink_marks import SENT_BY
from functions.mqtt_bridge.received import read_publish

QOS_1 = 0x32
DUP = 0x08


def counted(data: bytes) -> bytes:
    return pack("!H", len(data)) + data


def varint(number: int) -> bytes:
    found = bytearray()
    while number >= 0x80:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
properties = st.one_of(
    st.tuples(st.just(0x01), st.sampled_from([b"\0", b"\1"])),
    st.tuples(st.just(0x02), st.binary(min_size=4, max_size=4)),
    st.tuples(st.sampled_from([0x03, 0x08]), texts.map(lambda text: counted(text.encode()))),
    st.tuples(st.just(0x09), st.binary(max_size=20).map(counted)),
    st.tuples(st.just(0x0B), st.integers(1, 268_435_455).map(varint)),
    st.tuples(
        st.just(0x26),
        st.tuples(texts, texts).map(lambda pair: b"".join(counted(each.encode()) for each in pair)),
    ),
)


def user_property(name: str, value: str) -> bytes:
    return b"\x26" + counted(name.encode()) + counted(value.encode())


def packet(topic: bytes, props: bytes, payload: bytes = b"{}", packet_id: int | None = 7) -> bytes:
    middle = b"" if packet_id is None else pack("!H", packet_id)
    return counted(topic) + middle + varint(len(props)) + props + payload


@given(
    topic=texts,
    packet_id=st.integers(1, 65_535),
    qos=st.integers(0, 2),
    is_repeated=st.booleans(),
    props=st.lists(properties, max_size=20),
    payload=st.binary(max_size=50),
)
def test_every_packet_is_read_as_it_was_written(  # noqa: PLR0917
    topic: str,
    packet_id: int,
    qos: int,
    is_repeated: bool,
    props: list[tuple[int, bytes]],
    payload: bytes,
) -> None:
    written = b"".join(bytes([kind]) + value for kind, value in props)
    body = packet(topic.encode(), written, payload, packet_id if qos else None)
    found = read_publish(0x30 | qos << 1 | (DUP if is_repeated else 0), body)
    assert found is not None
    assert (found.topic, bytes(found.payload)) == (topic, payload)
    assert (found.packet_id, found.qos) == (packet_id if qos else 0, qos)
    assert found.is_repeated == is_repeated
    identifiers = [value for kind, value in props if kind == 0x0B]
    assert [varint(each) for each in found.identifiers] == identifiers


@given(st.integers(0x30, 0x3F), st.binary(max_size=60))
@example(QOS_1, b"")
@example(QOS_1, b"\xff\xff")
@example(QOS_1, counted(b"t"))
@example(QOS_1, counted(b"t") + b"\0\7")
@example(QOS_1, counted(b"t") + b"\0\7\xff\xff\xff\xff\xff")
@example(QOS_1, counted(b"t") + b"\0\7\x05\x26\0")
def test_no_bytes_raise_and_none_is_lost_that_has_a_packet_id(first_byte: int, body: bytes) -> None:
    found = read_publish(first_byte, body)
    topic_end = 2 + int.from_bytes(body[:2])
    qos = first_byte >> 1 & 3
    packet_id = body[topic_end : topic_end + 2]
    is_readable = topic_end <= len(body) and (
        qos == 0 or (qos < 3 and len(packet_id) == 2 and packet_id != b"\0\0")
    )
    assert (found is not None) == (is_readable and len(body) >= 2)
    if found is not None:
        assert body.endswith(found.payload)


@given(st.binary(max_size=40))
def test_what_paho_can_read_is_read_alike(props: bytes) -> None:
    expected = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    try:
        expected.unpack(varint(len(props)) + props)  # type: ignore[no-untyped-call]
    except Exception:  # noqa: BLE001 - whatever paho raises
        return
    found = read_publish(QOS_1, packet(b"t", props))
    assert found is not None
    assert bytes(found.payload) == b"{}"
    assert list(found.identifiers) == getattr(expected, "SubscriptionIdentifier", [])


def test_the_mark_is_found_among_other_properties() -> None:
    props = b"".join(
        (
            user_property("a", "\ufeff"),
            b"\x0b" + varint(5),
            user_property(SENT_BY, "runtime/1"),
            user_property(SENT_BY, "a second one"),
        )
    )
    found = read_publish(QOS_1, packet(b"t", props))
    assert found is not None
    assert (found.identifiers, found.mark) == ((5,), "runtime/1")


def test_a_mark_of_any_size_or_encoding_is_bounded() -> None:
    for value in (b"x" * 60_000, b"\xff" * 10, b"\0"):
        props = b"\x26" + counted(SENT_BY.encode()) + counted(value)
        found = read_publish(QOS_1, packet(b"t", props))
        assert found is not None
        assert len(found.mark) <= 128


def test_properties_that_break_the_protocol_end_the_properties_alone() -> None:
    for broken in (b"\x7f", b"\x26\0\1a\xff\xff", b"\x0b\xff\xff\xff\xff\xff", b"\x02\0", b"\x03"):
        found = read_publish(QOS_1, packet(b"t", b"\x0b\5" + broken))
        assert found is not None
        assert (bytes(found.payload), found.identifiers[:1]) == (b"{}", (5,))


def test_a_topic_that_is_not_utf_8_becomes_one_that_is_no_device_s() -> None:
    found = read_publish(QOS_1, packet(b"tenant/t1/device/d\xff/telemetry", b""))
    assert found is not None
    assert found.topic == "tenant/t1/device/d\ufffd/telemetry"


def test_a_megabyte_of_properties_takes_no_longer_than_a_thousand_of_them() -> None:
    body = packet(b"t", user_property("", "") * 200_000)
    began_s = time.process_time()
    for _ in range(10):
        found = read_publish(QOS_1, body)
    # 0.6 ms each on an idle machine; one by one they would take 100 ms, and by paho minutes.
    assert time.process_time() - began_s < 0.25
    assert found is not None
    assert bytes(found.payload) == b"{}"
