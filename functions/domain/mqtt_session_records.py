"""What nats-server stores of a client's MQTT session, and how that is removed. Does no I/O.

Source: nats-server 2.10 to 2.15, `server/mqtt.go`, mqttPersistedSession: a record on
`$MQTT.sess.{hash of the client id}` names the session's consumers of queued messages; the consumer
of releases (QoS 2) is named by the same hash.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

SESSIONS, QUEUED = "$MQTT_sess", "$MQTT_msgs"
UNRELEASED, RELEASES = "$MQTT_qos2in", "$MQTT_out"
"""The streams: of records, of queued messages, and the two of QoS 2."""
_RECORDS = "$MQTT.sess."
_STAGED = "$MQTT.qos2.in."
_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_HASH_LENGTH = 8
_TOKEN = re.compile(r"[A-Za-z0-9_$]{1,128}", re.ASCII)


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """The record of a session.

    Attributes:
        client_id: the client id.
        hash: the last token of the record's subject.
        consumers: the names of its consumers of queued messages.
    """

    client_id: str
    hash: str
    consumers: tuple[str, ...]


def record_subject(client_id: str) -> str:
    """The subject of a client's record.

    Source: nats-server, `server/mqtt.go` and `server/events.go`, getHash.
    """
    digest = hashlib.sha256(client_id.encode()).digest()[:_HASH_LENGTH]
    return _RECORDS + "".join(_DIGITS[byte % len(_DIGITS)] for byte in digest)


def read_record(subject: str, data: bytes) -> SessionRecord | None:
    """The record in a message of the stream of sessions; None where it is none."""
    hashed = subject.rpartition(".")[2]
    if not subject.startswith(_RECORDS) or not _TOKEN.fullmatch(hashed):
        return None
    try:
        record: Any = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(record, dict):
        return None
    kept = record.get("cons")
    configs = kept.values() if isinstance(kept, dict) else ()
    names = [str(each.get("durable_name")) for each in configs if isinstance(each, dict)]
    consumers = tuple(name for name in names if _TOKEN.fullmatch(name))
    return SessionRecord(str(record.get("id", "")), hashed, consumers)


def removal_of(record: SessionRecord) -> Sequence[tuple[str, dict[str, Any]]]:
    """The JetStream requests that remove everything of a session but its record, which goes last.

    What is gone already answers with 404.
    """
    return [
        *((f"CONSUMER.DELETE.{QUEUED}.{name}", {}) for name in record.consumers),
        (f"CONSUMER.DELETE.{RELEASES}.$MQTT_PUBREL_{record.hash}", {}),
        (f"STREAM.PURGE.{RELEASES}", {"filter": f"$MQTT.out.pubrel.{record.hash}"}),
    ]


def staging_client(subject: str) -> str | None:
    """The client id in the subject of a message that waits for its release; None for others.

    A client id has no dots there: nats-server accepts none.
    """
    if not subject.startswith(_STAGED):
        return None
    return subject.removeprefix(_STAGED).rpartition(".")[0]


__all__ = [
    "QUEUED",
    "RELEASES",
    "SESSIONS",
    "UNRELEASED",
    "SessionRecord",
    "read_record",
    "record_subject",
    "removal_of",
    "staging_client",
]
