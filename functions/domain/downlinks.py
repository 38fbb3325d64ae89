"""Messages from the platform to devices: how they are stored, and what a door makes of them.

A message is a row of the outbox in the transaction that made it, and then a message of the stream
`DOWNLINKS` on `downlinks.{tenant}.{device}.{kind}`, for a command with its id after it. The stream
keeps the newest message of each subject. Every door (nats-server's own MQTT listener, a bridge to
another broker) reads the stream with a durable consumer of its own and publishes the bytes on the
device's topic. A door whose broker has confirmed a command says so with `report_sent`: only then is
the command `sent`. What a door cannot pass on it drops, as commands are sent again until they are
answered. A device may get a command more than once, and knows it by its `command_id`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, NamedTuple

import orjson
from pydantic import BaseModel, ConfigDict, Field

from functions.domain.command_polls import CommandId
from functions.domain.identifiers import DeviceId, TenantId
from functions.domain.named_sql import read_queries
from functions.domain.outbox import Connection, NewMessage, add_messages
from functions.domain.quarantine import Executor
from functions.domain.topics import BadTopic, Topic, parse_topic
from runtime import Context, Message

_QUERIES = read_queries(Path(__file__).with_name("downlinks.sql"))
STREAM = "DOWNLINKS"
COMMANDS = "commands"
SHADOW = "shadow"
SENT_SUBJECT = "management.commands.sent"
"""The endpoint that takes reports of doors."""
MOST_REPORTED = 500
_TOKENS = 4


class NewDownlink(NamedTuple):
    """A message for a device.

    Attributes:
        kind: one of `topics.DOWNLINKS`, the last levels of the device's topic.
        body: the bytes that the device gets.
        msg_id: the stream drops a second message of this id.
        key: for a command its id; for an answer about a shadow the request, if more than the newest
            answer counts; letters, digits, `_` and `-`. Of one kind and key the stream keeps the
            newest message.
    """

    tenant_id: str
    device_id: str
    kind: str
    body: bytes
    msg_id: str
    key: str = ""


class SentCommand(BaseModel):
    """A command that a door has handed to its broker, and the broker has confirmed."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    tenant_id: TenantId
    device_id: DeviceId
    command_id: CommandId


class SentCommands(BaseModel):
    """A door's report."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    commands: Annotated[list[SentCommand], Field(max_length=MOST_REPORTED)]


@dataclass(frozen=True, slots=True)
class Downlink:
    """A message for a device, as a door reads it.

    Attributes:
        topic: the device's topic; `topic.text` is what an MQTT broker is given.
        body: the bytes for the device.
        command: what to report when it is sent; None for what is no command.
        expires_at: after it a command is not passed on; None for what is no command.
        timeout_s: a command times out so long after it was sent; None where the message does not
            say so.
    """

    topic: Topic
    body: bytes
    command: SentCommand | None = None
    expires_at: datetime | None = None
    timeout_s: int | None = None

    def has_expired(self, now: datetime) -> bool:
        """Whether it is too late to pass it on."""
        return self.expires_at is not None and self.expires_at <= now

    def may_wait_s(self, now: datetime) -> float | None:
        """For how long a broker may keep it, if it gets it now; None for ever.

        The command counts as sent then, so it is of use until it times out or expires.
        """
        if self.expires_at is None:
            return None
        left_s = (self.expires_at - now).total_seconds()
        return left_s if self.timeout_s is None else min(left_s, self.timeout_s)


def downlink_stream_subject(tenant_id: str, device_id: str, kind: str, key: str = "") -> str:
    """The subject of a message in the stream; dots of the device's id are written as `//`."""
    levels = kind.replace("/", ".")
    subject = f"downlinks.{tenant_id}.{device_id.replace('.', '//')}.{levels}"
    return f"{subject}.{key}" if key else subject


async def add_downlinks(connection: Connection, downlinks: Iterable[NewDownlink]) -> None:
    """Queue messages for devices, in the caller's transaction; those of a tenant keep this order.

    They are published within milliseconds of the commit, or when NATS is back.
    """
    await add_messages(
        connection,
        [
            NewMessage(
                f"{each.tenant_id}/downlinks",
                downlink_stream_subject(each.tenant_id, each.device_id, each.kind, each.key),
                each.msg_id,
                each.body,
            )
            for each in downlinks
        ],
    )


def read_downlink(message: Message) -> Downlink | BadTopic:
    """A stored message, or why it is none for a device; whoever gets that drops it."""
    tokens = message.subject.split(".")
    if len(tokens) < _TOKENS:
        return BadTopic("the subject has too few tokens")
    _, tenant_id, device, *kind = tokens
    is_command = kind[0] == COMMANDS
    topic = _read_topic(tenant_id, device, kind[:1] if is_command else kind)
    if isinstance(topic, BadTopic):
        return topic
    if not is_command:
        return Downlink(topic, message.data)
    return _read_command(topic, kind[1:], message.data)


def _read_command(topic: Topic, key: list[str], body: bytes) -> Downlink | BadTopic:
    try:
        content = orjson.loads(body)
        command = SentCommand(
            tenant_id=topic.tenant_id, device_id=topic.device_id, command_id=content["command_id"]
        )
        expires_at = datetime.fromisoformat(content["expires_at"])
        timeout_s = content.get("timeout_s")
    except (ValueError, TypeError, KeyError):
        return BadTopic("the content is not a command")
    if expires_at.tzinfo is None or key != [command.command_id]:
        return BadTopic("the command is not the one that the subject names")
    if not (timeout_s is None or type(timeout_s) is int):
        return BadTopic("the command's timeout is not a whole number")
    return Downlink(topic, body, command, expires_at, timeout_s)


def _read_topic(tenant_id: str, device: str, kind: Sequence[str]) -> Topic | BadTopic:
    device_id = device.replace("//", ".")
    topic = parse_topic(f"tenant/{tenant_id}/device/{device_id}/{'/'.join(kind)}")
    if isinstance(topic, BadTopic) and kind[0] == SHADOW:
        # The last part may be a key.
        topic = parse_topic(f"tenant/{tenant_id}/device/{device_id}/{'/'.join(kind[:-1])}")
    if isinstance(topic, Topic) and not topic.is_downlink:
        return BadTopic("the message is of a type that devices send")
    return topic


async def send_open_commands(executor: Executor, devices: Iterable[tuple[str, str]]) -> None:
    """Have the open commands of devices that have just connected sent within seconds.

    Args:
        executor: the pool or a connection.
        devices: tenant and device ids. Of each, the 20 oldest commands are sent.
    """
    names = sorted(set(devices))
    await executor.execute(
        _QUERIES["send_open"],
        [tenant_id for tenant_id, _ in names],
        [device_id for _, device_id in names],
    )


async def report_sent(ctx: Context, sent: Sequence[SentCommand]) -> None:
    """Report commands that a broker has confirmed; one that moved on meanwhile stays as it is.

    Raises:
        RequestFailed, NoAnswer, Unavailable: they are not noted. Retry the messages: a device that
            gets a command again knows it by its id.
    """
    for start in range(0, len(sent), MOST_REPORTED):
        part = [each.model_dump() for each in sent[start : start + MOST_REPORTED]]
        await ctx.request(SENT_SUBJECT, orjson.dumps({"commands": part}))


__all__ = [
    "COMMANDS",
    "MOST_REPORTED",
    "SENT_SUBJECT",
    "STREAM",
    "Downlink",
    "NewDownlink",
    "SentCommand",
    "SentCommands",
    "add_downlinks",
    "downlink_stream_subject",
    "read_downlink",
    "report_sent",
    "send_open_commands",
]
