"""Device topics, and their NATS subjects."""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

MAX_TOPIC_LENGTH = 320
"""The longest valid topic has 301 characters; a text longer than 320 is not parsed."""

ACK = "commands/ack"
SHADOW_REQUESTS = frozenset({"reported", "update", "get", "delete"})
"""What a device sends about a shadow: the last level of `shadow/…` and `shadow/name/{name}/…`."""
SHADOW_ANSWERS = frozenset(
    {
        *("delta", "update/accepted", "update/rejected", "update/documents"),
        *("get/accepted", "get/rejected", "delete/accepted", "delete/rejected"),
    }
)
"""What the platform sends about a shadow, below the same two."""
PRESENCE = "presence"
"""The type of the events that tell of a device's presence."""
DOWNLINKS = frozenset({"commands", "routed", "shadow/desired", PRESENCE}).union(
    f"shadow/{answer}" for answer in SHADOW_ANSWERS
)
"""Message types that the platform sends to a device, or that tell of it; a device never sends them.
The answers about named shadows come to these, see `Topic.is_downlink`."""

_TENANT = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
# Not dots alone: `..` in a path means the level above, and clients and proxies rewrite it.
_DEVICE = re.compile(r"(?!\.+\Z)[A-Za-z0-9_.:-]{1,128}", re.ASCII)
_MSG_TYPE = re.compile(r"[a-z0-9_]{1,32}", re.ASCII)
_SHADOW_NAME = re.compile(r"[A-Za-z0-9_:-]{1,64}", re.ASCII)
_OF_DEVICES = frozenset({ACK}).union(f"shadow/{request}" for request in SHADOW_REQUESTS)
_NAMED = "shadow/name/"
_DOWNLINK = "downlinks"
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
        """The first token of the topic's subject: `telemetry`, `shadow` or `commands`.

        `downlinks` for a message to a device, as the platform's stream of them has it.
        """
        kind = self.msg_type
        if "/" not in kind:
            return "telemetry" if kind not in DOWNLINKS else _DOWNLINK
        if kind == ACK:
            return "commands"
        return "shadow" if kind.rpartition("/")[2] in SHADOW_REQUESTS else _DOWNLINK

    @property
    def is_downlink(self) -> bool:
        """Whether the platform sends such messages to the device, and not the device."""
        return self.family == _DOWNLINK

    @property
    def stream_subject(self) -> str:
        """The subject for an envelope with this topic, such as `telemetry.{tenant_id}`.

        Of a message to a device, that of telemetry: function `ingest` refuses it by its reason.
        """
        return f"{'telemetry' if self.is_downlink else self.family}.{self.tenant_id}"


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


def is_shadow_name(text: str) -> bool:
    """Whether the text is a valid name of a shadow."""
    return _SHADOW_NAME.fullmatch(text) is not None


def shadow_kind(name: str, last: str) -> str:
    """The message type about a shadow, such as `shadow/update` or `shadow/name/{name}/update`.

    Args:
        name: a valid name; empty for the shadow without a name.
        last: one of `SHADOW_REQUESTS` or `SHADOW_ANSWERS`.
    """
    return f"{_NAMED}{name}/{last}" if name else f"shadow/{last}"


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
    if (
        _MSG_TYPE.fullmatch(msg_type)
        or msg_type in _OF_DEVICES
        or msg_type in DOWNLINKS
        or _is_of_named_shadow(msg_type)
    ):
        return Topic(tenant_id, device_id, msg_type)
    return BadTopic(
        f"the message type may hold 1 to 32 of a-z 0-9 _, or is {ACK}, or one of a shadow"
    )


def _is_of_named_shadow(msg_type: str) -> bool:
    if not msg_type.startswith(_NAMED):
        return False
    name, _, last = msg_type[len(_NAMED) :].partition("/")
    return is_shadow_name(name) and (last in SHADOW_REQUESTS or last in SHADOW_ANSWERS)


def topic_from_subject(subject: str) -> Topic | BadTopic | None:
    """The topic in a raw message's subject; None when the envelope names the topic.

    Raw forms: `telemetry.{tenant}.{device}[.{msg_type}]`, `commands.{tenant}.{device}.ack`,
    `shadow.{tenant}.{device}[.name.{name}].{request}` with one of `SHADOW_REQUESTS`, and for
    telemetry of a type that nats-server's MQTT listener does not map,
    `tenant.{tenant}.device.{device}.{msg_type}`. The listener writes a dot of a device id as `//`:
    device `d.1` is token `d//1`.
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
    msg_type = _type_in_subject(family, rest)
    if msg_type is None:
        return BadTopic("the subject is of no known message type")
    return _checked(tenant_id, device_token.replace("//", "."), msg_type)


def _type_in_subject(family: str, rest: list[str]) -> str | None:
    match family, rest:
        case "telemetry", []:
            return "telemetry"
        case "telemetry", [msg_type]:
            return msg_type
        case "shadow", [request] if request in SHADOW_REQUESTS:
            return shadow_kind("", request)
        case "shadow", ["name", name, request] if request in SHADOW_REQUESTS:
            return f"{_NAMED}{name}/{request}"
        case "commands", ["ack"]:
            return ACK
    return None


def _from_unmapped(tokens: list[str]) -> Topic | BadTopic:
    # A slash in the last token would be a type of another family.
    if len(tokens) != _LEVELS or tokens[2] != "device" or "/" in tokens[-1]:
        return BadTopic("expected tenant.{tenant_id}.device.{device_id}.{msg_type}")
    return _checked(tokens[1], tokens[3].replace("//", "."), tokens[4])


def raw_subject(topic: Topic) -> str:
    """The subject of a topic's raw payload, from which `topic_from_subject` reads the topic."""
    kind = topic.msg_type
    if "/" in kind and not topic.is_downlink:
        kind = kind.partition("/")[2].replace("/", ".")
    return f"{topic.stream_subject}.{topic.device_id.replace('.', '//')}.{kind}"


def downlink_subject(tenant_id: str, device_id: str, kind: str) -> str:
    """The subject that nats-server's MQTT listener delivers as `tenant/…/device/…/{kind}`.

    Args:
        tenant_id: a valid id.
        device_id: a valid id; its dots become `//`.
        kind: a message type to devices.
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
    "PRESENCE",
    "SHADOW_ANSWERS",
    "SHADOW_REQUESTS",
    "BadTopic",
    "Topic",
    "downlink_subject",
    "is_device_id",
    "is_shadow_name",
    "is_tenant_id",
    "mqtt_topic",
    "parse_topic",
    "raw_subject",
    "shadow_kind",
    "topic_from_subject",
]
