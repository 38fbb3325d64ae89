"""The door to devices at an MQTT broker: commands and other messages, with QoS 1.

A message is acknowledged to JetStream, and a command counts as sent, when the broker has confirmed
it by a PUBACK. The broker keeps it for a device that is away and has a session there.
"""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime

from functions.domain.downlink_marks import DownlinkMarks
from functions.domain.downlinks import Downlink, SentCommand, read_downlink, report_sent
from functions.mqtt_bridge.connection import MqttConnection
from functions.mqtt_bridge.outcomes import PACKET_TOO_LARGE, Disconnected, NotPublished
from functions.mqtt_bridge.settings import BrokerSettings
from runtime import Batch, Context, Event, NoAnswer, RequestFailed, Unavailable

# The name under which the host looks for a function's settings.
Settings = BrokerSettings

_NEVER = frozenset({0x90, PACKET_TOO_LARGE, 0x99})
"""Codes of a PUBACK that say the same next time: the topic, the size, the payload's form."""
_BEGIN_AGAIN_S = 1.0
_LONGEST_S = 2**32 - 1


class Expired(Exception):  # noqa: N818 - an outcome, not an error
    """The time of the command is up."""


class Link:
    """A connection to the broker that all calls share; opened at the first message."""

    def __init__(self, settings: BrokerSettings) -> None:
        self._settings = settings
        self._marks = DownlinkMarks(settings.mark_key)
        self._connection: MqttConnection | None = None
        self._opening = asyncio.Lock()
        self._failed_at_s = float("-inf")
        self._failure = Disconnected("")

    async def publish(self, downlink: Downlink) -> None:
        """Publish with QoS 1; returns when the broker has confirmed the message.

        Raises:
            Disconnected: there is no connection, or it ended before the PUBACK.
            NotPublished: the broker refused the message.
            Expired: a command whose time is up by now.
        """
        topic = downlink.topic.text
        connection = await self._connect()
        now = datetime.now(UTC)
        if downlink.has_expired(now):
            raise Expired
        may_wait_s = downlink.may_wait_s(now)
        await connection.publish(
            topic,
            downlink.body,
            mark=self._marks.make(topic, downlink.body),
            # Whole seconds; 0 would keep it from a device that is connected.
            expires_in_s=None if may_wait_s is None else min(max(1, int(may_wait_s)), _LONGEST_S),
        )

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()

    async def _connect(self) -> MqttConnection:
        async with self._opening:
            if self._connection is not None and self._connection.is_open:
                return self._connection
            now_s = asyncio.get_running_loop().time()
            if now_s - self._failed_at_s < _BEGIN_AGAIN_S:
                # A whole batch waits here: it does not knock once for each message.
                raise self._failure
            try:
                self._connection = await MqttConnection.open(self._settings, client_id="")
            except Disconnected as failure:
                self._failed_at_s, self._failure = asyncio.get_running_loop().time(), failure
                raise
            return self._connection


async def start(ctx: Context[None]) -> Link:
    """The connection to the broker, which is opened when the first message comes."""
    return Link(ctx.settings)


async def stop(ctx: Context[Link]) -> None:
    """Close the connection."""
    ctx.state.close()


async def send_downlinks(batch: Batch[bytes], ctx: Context[Link]) -> None:
    """Publish messages to devices, in their order, and report the commands among them.

    What is no message to a device, or is too late, is dropped. The others are tried again until the
    broker has confirmed them; one that it will never take becomes a dead letter.
    """
    sending: list[tuple[Event[bytes], Downlink]] = []
    for event in batch:
        downlink = read_downlink(event.message)
        if not isinstance(downlink, Downlink):
            ctx.log.warning("A message to no device was dropped", reason=downlink.reason)
        elif not downlink.has_expired(datetime.now(UTC)):
            sending.append((event, downlink))
    outcomes = await _publish_all(ctx.state, sending)
    sent: list[SentCommand] = []
    for (event, downlink), outcome in zip(sending, outcomes, strict=True):
        if outcome is not None:
            _judge(batch, event, outcome)
        elif downlink.command is not None:
            sent.append(downlink.command)
    if sent:
        await _report(ctx, sent)


async def _publish_all(
    link: Link, sending: Sequence[tuple[Event[bytes], Downlink]]
) -> list[BaseException | None]:
    """Publish messages; for each what kept it from being confirmed.

    They are written one after the other, and the broker confirms them together. A broker may also
    answer one message by closing the connection, so what failed before waits for its PUBACK alone.
    """
    if all(event.attempt == 1 for event, _ in sending):
        works = (link.publish(downlink) for _, downlink in sending)
        return list(await asyncio.gather(*works, return_exceptions=True))
    outcomes: list[BaseException | None] = []
    for _, downlink in sending:
        outcomes += await asyncio.gather(link.publish(downlink), return_exceptions=True)
    return outcomes


def _judge(batch: Batch[bytes], event: Event[bytes], failure: BaseException) -> None:
    """Have a message that was not confirmed tried again, given up, or dropped as too late."""
    if isinstance(failure, Expired):
        return
    if isinstance(failure, Disconnected):
        batch.retry(event, f"the MQTT broker is not connected: {failure.reason}")
    elif not isinstance(failure, NotPublished):
        raise failure
    elif failure.code in _NEVER:
        batch.reject(event, "BROKER_REFUSED", f"the MQTT broker does not take it: {failure}")
    else:
        batch.retry(event, f"the MQTT broker did not take it: {failure}")


async def _report(ctx: Context[Link], sent: list[SentCommand]) -> None:
    """Report commands. What cannot be reported stays queued, and is sent again."""
    try:
        await report_sent(ctx, sent)
    except (NoAnswer, RequestFailed, Unavailable) as failure:
        ctx.log.warning(
            "Commands were sent and are still queued, so they are sent again",
            commands=len(sent),
            error_type=type(failure).__name__,
        )


__all__ = ["Settings", "send_downlinks", "start", "stop"]
