"""Says which stored messages are of a tenant. Does no I/O."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import orjson

FAMILIES = frozenset(
    {
        *("telemetry", "shadow", "commands", "tenant"),
        *("routes", "notices", "polled", "republish", "downlinks", "device_events"),
    }
)
"""First tokens of subjects whose second token is a tenant."""

_MQTT_FAMILIES = frozenset({"msgs", "rmsgs"})
_MQTT_TENANT = 3
_SUBJECT, _TAIL = b"Runtime-Subject", b"Runtime-Tail"


class StoredMessage(NamedTuple):
    """A message as its stream has it; `headers` are the bytes of the block, empty without any."""

    sequence: int
    subject: str
    headers: bytes
    data: bytes


def subjects_of(tenant_id: str) -> tuple[str, ...]:
    """Filters that match every subject which may name the tenant, and others that look alike."""
    return f"*.{tenant_id}", f"*.{tenant_id}.>", f"$MQTT.*.tenant.{tenant_id}.>"


def purges(subjects: Iterable[str], tenant_id: str) -> frozenset[str]:
    """The filters by which these subjects are purged, as far as they are the tenant's.

    A stream's subjects may only look like it: `mailbox.ready.{function}` beside a tenant `ready`.
    """
    found: set[str] = set()
    for subject in subjects:
        tokens = subject.split(".")
        if tokens[0] == "$MQTT" and len(tokens) > _MQTT_TENANT:
            is_its_own = tokens[1] in _MQTT_FAMILIES and tokens[2:4] == ["tenant", tenant_id]
            if is_its_own:
                found.add(f"$MQTT.{tokens[1]}.tenant.{tenant_id}.>")
        elif names_tenant(subject, tenant_id):
            exact = f"{tokens[0]}.{tenant_id}"
            found.add(exact if subject == exact else f"{exact}.>")
    return frozenset(found)


def names_tenant(subject: str, tenant_id: str) -> bool:
    """Whether the subject is one of the tenant's."""
    family, _, rest = subject.partition(".")
    return family in FAMILIES and rest.partition(".")[0] == tenant_id


def is_of_tenant(message: StoredMessage, tenant_id: str) -> bool:
    """Whether a message is the tenant's: by its original's subject, or by what it says itself.

    The second is for messages without a tenant in their subject, such as those on `sms.send`. The
    record of an MQTT session names its client id, which begins with the tenant.
    """
    original = _headers(message).get(_SUBJECT, b"").decode("latin-1")
    if names_tenant(original or message.subject, tenant_id):
        return True
    try:
        content: Any = orjson.loads(message.data)
    except orjson.JSONDecodeError:
        # The first part of a message that was cut.
        named = rb'"tenant_id"\s*:\s*"' + re.escape(tenant_id).encode() + rb'"'
        return re.search(named, message.data) is not None
    if not isinstance(content, dict):
        return False
    if message.subject.startswith("$MQTT.sess."):
        return str(content.get("id", "")).startswith(f"{tenant_id}/")
    return content.get("tenant_id") == tenant_id


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
