"""Says which stored messages are of a tenant. Does no I/O."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import orjson

from functions.domain.mqtt_session_records import read_record, staging_client

FAMILIES = frozenset(
    {
        *("telemetry", "shadow", "commands", "tenant"),
        *("routes", "notices", "polled", "republish", "downlinks", "device_events"),
    }
)
"""First tokens of subjects whose second token is a tenant."""

# Streams of nats-server's MQTT sessions by the subject of the message, which it may have mapped.
_MQTT_STREAMS = frozenset({"msgs", "rmsgs"})
_MQTT_FAMILY = 2
# Copies of messages that the runtime keeps.
_COPIES = ("dead_letters.", "mailbox.")
_SUBJECT, _TAIL = b"Runtime-Subject", b"Runtime-Tail"
_STAGED_SUBJECT = b"Nmqtt-Subject"


class StoredMessage(NamedTuple):
    """A message as its stream has it; `headers` are the bytes of the block, empty without any."""

    sequence: int
    subject: str
    headers: bytes
    data: bytes


def subjects_of(tenant_id: str) -> tuple[str, ...]:
    """Filters that match every subject which may name the tenant, and others that look alike."""
    plain = (f"*.{tenant_id}", f"*.{tenant_id}.>")
    return (*plain, *(f"$MQTT.*.{each}" for each in plain))


def purges(subjects: Iterable[str], tenant_id: str) -> frozenset[str]:
    """The filters by which these subjects are purged, as far as they are the tenant's.

    A stream's subjects may only look like it: `mailbox.ready.{function}` beside a tenant `ready`.
    """
    found: set[str] = set()
    for subject in subjects:
        tokens = subject.split(".")
        prefix = ""
        if tokens[0] == "$MQTT" and len(tokens) > _MQTT_FAMILY:
            if tokens[1] not in _MQTT_STREAMS:
                continue
            prefix, tokens = f"$MQTT.{tokens[1]}.", tokens[_MQTT_FAMILY:]
        named = ".".join(tokens)
        if names_tenant(named, tenant_id):
            exact = f"{tokens[0]}.{tenant_id}"
            found.add(prefix + (exact if named == exact else f"{exact}.>"))
    return frozenset(found)


def names_tenant(subject: str, tenant_id: str) -> bool:
    """Whether the subject is one of the tenant's."""
    return _owner(subject) == tenant_id


def is_of_tenant(message: StoredMessage, tenant_id: str) -> bool:
    """Whether a message is the tenant's: by its subject, or by what it says where none names one.

    A copy that the runtime keeps is judged as its original. Where the subject names a tenant, it
    decides alone: the doors have proved who may send on it, and anyone may write another tenant's
    name into a payload. Only a message on a subject such as `sms.send` is its payload's tenant's.
    What nats-server keeps of an MQTT session names its client id, which begins with the tenant.
    """
    subject = _subject_of(message)
    if subject.startswith("$MQTT."):
        return _is_of_session(message, tenant_id)
    if (owner := _owner(subject)) is not None:
        return owner == tenant_id
    if _is_tail(message):
        return False  # It goes with the dead letter whose end it is.
    try:
        content: Any = orjson.loads(message.data)
    except orjson.JSONDecodeError:
        # A message that was cut, and whose end is gone, or that never was JSON.
        named = rb'"tenant_id"\s*:\s*"' + re.escape(tenant_id).encode() + rb'"'
        return re.search(named, message.data) is not None
    return isinstance(content, dict) and content.get("tenant_id") == tenant_id


def _owner(subject: str) -> str | None:
    """The tenant that the subject names; None where it names none."""
    family, dot, rest = subject.partition(".")
    return rest.partition(".")[0] if dot and family in FAMILIES else None


def _subject_of(message: StoredMessage) -> str:
    """The subject on which the message was first stored."""
    if message.subject.startswith(_COPIES):
        original = _headers(message).get(_SUBJECT, b"").decode("latin-1")
        return original or message.subject
    return message.subject


def _is_of_session(message: StoredMessage, tenant_id: str) -> bool:
    client_id = staging_client(message.subject)
    if client_id is None:
        record = read_record(message.subject, message.data)
        client_id = "" if record is None else record.client_id
    elif "/" not in client_id:
        # Not a device's: a trusted publisher's, for whichever tenant.
        staged = _headers(message).get(_STAGED_SUBJECT, b"").decode("latin-1")
        return names_tenant(staged, tenant_id)
    return client_id.startswith(f"{tenant_id}/")


def _is_tail(message: StoredMessage) -> bool:
    return message.subject.startswith("dead_letters.") and message.subject.endswith(".tail")


def tail_of(message: StoredMessage) -> int | None:
    """The sequence of the message with the rest of a dead letter that was too large for one."""
    text = _headers(message).get(_TAIL, b"")
    return int(text) if re.fullmatch(rb"[0-9]{1,19}", text) else None


def _headers(message: StoredMessage) -> Mapping[bytes, bytes]:
    """The headers by name; the first one of each."""
    found: dict[bytes, bytes] = {}
    for line in message.headers.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        found.setdefault(name, value.strip())
    return found


__all__ = [
    "FAMILIES",
    "StoredMessage",
    "is_of_tenant",
    "names_tenant",
    "purges",
    "subjects_of",
    "tail_of",
]
