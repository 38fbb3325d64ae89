"""Device topics, and their NATS subjects."""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

MAX_TOPIC_LENGTH = 256
"""The longest valid topic has 249 characters; a text longer than 256 is not parsed."""

REPORTED = "shadow/reported"
ACK = "commands/ack"
DOWNLINKS = frozenset({"commands", "shadow/desired", "shadow/delta", "routed"})
"""Message types that the platform sends to a device; a device never sends them."""

_TENANT = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
# Not dots alone: `..` in a path means the level above, and clients and proxies rewrite it.
_DEVICE = re.compile(r"(?!\.+\Z)[A-Za-z0-9_.:-]{1,128}", re.ASCII)
_MSG_TYPE = re.compile(r"[a-z0-9_]{1,32}", re.ASCII)
_FAMILIES = {REPORTED: "shadow", ACK: "commands"}
_LEVELS = 5
_UNMAPPED = "tenant"
_PLAIN_SUBJECT_TOKENS = 2


class Topic(NamedTuple):
    """A valid topic: `tenant/{tenant_id}/device/{device_id}/{msg_type}`."""

    tenant_id: str
    device_id: str
    msg_type: str

    @property
    def text(self) -> str:
        """The topic as MQTT writes it."""
        return f"tenant/{self.tenant_id}/device/{self.device_id}/{self.msg_type}"

    @property
    def family(self) -> str:
        """The first token of the topic's subject: `telemetry`, `shadow` or `commands`."""
        return _FAMILIES.get(self.msg_type, "telemetry")

    @property
    def stream_subject(self) -> str:
        """The subject for an envelope with this topic, such as `telemetry.{tenant_id}`."""
        return f"{self.family}.{self.tenant_id}"


@dataclass(frozen=True, slots=True)
class BadTopic:
    """Why a text is not a topic. `reason` repeats none of the text."""

    reason: str


def is_tenant_id(text: str) -> bool:
    """Whether the text is a valid tenant id."""
    return _TENANT.fullmatch(text) is not None


def is_device_id(text: str) -> bool:
    """Whether the text is a valid device id."""
    return _DEVICE.fullmatch(text) is not None


def parse_topic(text: object) -> Topic | BadTopic:
    """The parts of a topic, or why `text` is not a topic."""
    if not isinstance(text, str):
        return BadTopic("the topic is not a string")
    if len(text) > MAX_TOPIC_LENGTH:
        return BadTopic(f"the topic is longer than {MAX_TOPIC_LENGTH} characters")
    return _parse(text)


@lru_cache(maxsize=65_536)
def _parse(text: str) -> Topic | BadTopic:
    levels = text.split("/", _LEVELS - 1)
    if len(levels) != _LEVELS or levels[0] != "tenant" or levels[2] != "device":
        return BadTopic("expected tenant/{tenant_id}/device/{device_id}/{msg_type}")
    return _checked(levels[1], levels[3], levels[4])


def _checked(tenant_id: str, device_id: str, msg_type: str) -> Topic | BadTopic:
    if not is_tenant_id(tenant_id):
        return BadTopic("the tenant id may hold 1 to 64 of A-Z a-z 0-9 _ -")
    if not is_device_id(device_id):
        return BadTopic("the device id may hold 1 to 128 of A-Z a-z 0-9 _ . : -, and not only dots")
    if msg_type in _FAMILIES or msg_type in DOWNLINKS or _MSG_TYPE.fullmatch(msg_type):
        return Topic(tenant_id, device_id, msg_type)
    return BadTopic(f"the message type may hold 1 to 32 of a-z 0-9 _, or is {REPORTED} or {ACK}")


def topic_from_subject(subject: str) -> Topic | BadTopic | None:
    """The topic in a raw message's subject; None when the envelope names the topic.

    Raw forms: `telemetry.{tenant}.{device}[.{msg_type}]`, `shadow.{tenant}.{device}.reported`,
    `commands.{tenant}.{device}.ack`, and for telemetry of a type that nats-server's MQTT listener
    does not map, `tenant.{tenant}.device.{device}.{msg_type}`. The listener writes a dot of a
    device id as `//`: device `d.1` is token `d//1`.
    """
    if subject.count(".") < _PLAIN_SUBJECT_TOKENS:
        return None
    return _from_subject(subject)


@lru_cache(maxsize=65_536)
def _from_subject(subject: str) -> Topic | BadTopic:
    tokens = subject.split(".")
    if tokens[0] == _UNMAPPED:
        return _from_unmapped(tokens)
    family, tenant_id, device_token, *rest = tokens
    if len(rest) > 1:
        return BadTopic("the subject has too many tokens")
    device_id = device_token.replace("//", ".")
    suffix = rest[0] if rest else ""
    match family:
        case "telemetry":
            return _checked(tenant_id, device_id, suffix or "telemetry")
        case "shadow" if suffix == "reported":
            return _checked(tenant_id, device_id, REPORTED)
        case "commands" if suffix == "ack":
            return _checked(tenant_id, device_id, ACK)
    return BadTopic("the subject is of no known message type")


def _from_unmapped(tokens: list[str]) -> Topic | BadTopic:
    # A slash in the last token would be a type of another family.
    if len(tokens) != _LEVELS or tokens[2] != "device" or "/" in tokens[-1]:
        return BadTopic("expected tenant.{tenant_id}.device.{device_id}.{msg_type}")
    return _checked(tokens[1], tokens[3].replace("//", "."), tokens[4])


def downlink_subject(tenant_id: str, device_id: str, kind: str) -> str:
    """The subject that nats-server's MQTT listener delivers as `tenant/…/device/…/{kind}`.

    Args:
        tenant_id: a valid id.
        device_id: a valid id; its dots become `//`.
        kind: one of `DOWNLINKS`.
    """
    token = device_id.replace(".", "//")
    return f"tenant.{tenant_id}.device.{token}.{kind.replace('/', '.')}"


def mqtt_topic(subject: str) -> str:
    """The MQTT topic of a subject that nats-server's MQTT listener made.

    Source: nats-server `server/mqtt.go`, natsSubjectToMQTTTopic: `.` was `/`, `//` was `.`, `/.`
    was a separator after an empty level, and a last `./` was a separator before an empty level.
    """
    return re.sub(r"//|/\.|\./$|\.", lambda found: "." if found[0] == "//" else "/", subject)


__all__ = [
    "ACK",
    "DOWNLINKS",
    "MAX_TOPIC_LENGTH",
    "REPORTED",
    "BadTopic",
    "Topic",
    "downlink_subject",
    "is_device_id",
    "is_tenant_id",
    "mqtt_topic",
    "parse_topic",
    "topic_from_subject",
]
