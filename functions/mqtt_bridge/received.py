"""Reads a PUBLISH packet, in time that grows with its length. Pure.

paho-mqtt's own reader ends the connection at code points that brokers pass on, such as U+FEFF in a
user property, and the broker would send the packet again for ever. It also copies what is left of
the packet at each property. This one reads what the bridge needs and checks nothing else: what a
message is worth is for function `ingest` to say.

Source: MQTT 5.0 (OASIS), sections 1.5, 2.2.2 and 3.3.
"""

from typing import NamedTuple

from functions.domain.downlink_marks import SENT_BY

_NAME = SENT_BY.encode()
_LONGEST_MARK_BYTES = 128
_MOST_PROPERTIES = 1000
"""Those after them are not read: a megabyte of small ones would take the event loop for long."""
_VARINT_BYTES = 4
_MOST_QOS = 2
_SUBSCRIPTION_IDENTIFIER, _USER_PROPERTY = 0x0B, 0x26
_FIXED_BYTES = {0x01: 1, 0x02: 4, 0x23: 2}
"""Payload format indicator, message expiry interval, topic alias."""
_COUNTED = frozenset({0x03, 0x08, 0x09})
"""Content type, response topic and correlation data: a length of two bytes, and so many bytes."""


class Received(NamedTuple):
    """A message that the broker delivers.

    Attributes:
        topic: what is not UTF-8 in it is replaced by U+FFFD, so that it is no valid topic.
        payload: a view of the packet.
        packet_id: 0 for QoS 0.
        qos: 0 to 2.
        is_repeated: the DUP flag.
        identifiers: the subscription identifiers.
        mark: the value of the first user property `SENT_BY`; empty without one.
    """

    topic: str
    payload: memoryview
    packet_id: int
    qos: int
    is_repeated: bool
    identifiers: tuple[int, ...] = ()
    mark: str = ""


def read_publish(first_byte: int, body: bytes | bytearray) -> Received | None:
    """The message in a PUBLISH packet; None when there is no packet id to acknowledge it by.

    Properties that cannot be read are left out with those after them. If not even their length can
    be read, the payload begins where they should.

    Args:
        first_byte: type and flags.
        body: what follows the packet's length.
    """
    view = memoryview(body)
    qos = first_byte >> 1 & 3
    topic_end = 2 + int.from_bytes(view[:2])
    start = topic_end + (2 if qos else 0)
    if qos > _MOST_QOS or start > len(view):
        return None
    topic = str(view[2:topic_end], "utf-8", "replace")
    packet_id = int.from_bytes(view[topic_end:start])
    if qos and not packet_id:
        return None
    is_repeated = bool(first_byte & 0x08)
    try:
        length, begin = _read_varint(view, start)
    except ValueError:
        return Received(topic, view[start:], packet_id, qos, is_repeated)
    end = begin + length
    if end > len(view):
        return Received(topic, view[start:], packet_id, qos, is_repeated)
    if not length:
        return Received(topic, view[end:], packet_id, qos, is_repeated)
    identifiers, mark = _read_properties(view[begin:end])
    return Received(topic, view[end:], packet_id, qos, is_repeated, identifiers, mark)


def _read_properties(view: memoryview) -> tuple[tuple[int, ...], str]:
    """Subscription identifiers and mark, as far as the properties can be read."""
    identifiers: list[int] = []
    mark = ""
    at, end = 0, len(view)
    for _ in range(_MOST_PROPERTIES):
        if at >= end:
            break
        kind = view[at]
        at += 1
        if kind == _USER_PROPERTY:
            name_end = _end_of_counted(view, at)
            value_end = _end_of_counted(view, name_end)
            if value_end > end:
                break
            if not mark and view[at + 2 : name_end] == _NAME:
                mark = _mark_in(view[name_end + 2 : value_end])
            at = value_end
        elif kind == _SUBSCRIPTION_IDENTIFIER:
            try:
                identifier, at = _read_varint(view, at)
            except ValueError:
                break
            identifiers.append(identifier)
        elif kind in _COUNTED:
            at = _end_of_counted(view, at)
        elif kind in _FIXED_BYTES:
            at += _FIXED_BYTES[kind]
        else:
            break
    return tuple(identifiers), mark


def _end_of_counted(view: memoryview, at: int) -> int:
    """Where a value ends that begins with its length; beyond the view when it is cut."""
    counted = view[at : at + 2]
    return at + 2 + (int.from_bytes(counted) if len(counted) == 2 else 0)  # noqa: PLR2004


def _mark_in(value: memoryview) -> str:
    return str(value, "utf-8", "replace") if len(value) <= _LONGEST_MARK_BYTES else ""


def _read_varint(view: memoryview, at: int) -> tuple[int, int]:
    """A variable byte integer, and where it ends; raises ValueError when there is none."""
    value = 0
    for number, byte in enumerate(view[at : at + _VARINT_BYTES]):
        value |= (byte & 0x7F) << 7 * number
        if byte < 0x80:  # noqa: PLR2004 - no further byte
            return value, at + number + 1
    raise ValueError("no variable byte integer")


__all__ = ["Received", "read_publish"]
