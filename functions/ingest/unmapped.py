"""Quarantines messages on topics that belong to no stream, so that a device's mistake shows."""

from functions.domain.envelope import BAD_TOPIC_FORMAT
from functions.domain.quarantine import Refusal, quarantine_many
from functions.domain.refusal_log import log_refusals
from functions.domain.topics import DOWNLINKS, Topic, mqtt_topic, parse_topic
from runtime import Batch, Context, Message

_FROM_MQTT = "Nmqtt-Pub"
"""The header that nats-server's MQTT listener adds to a message of an MQTT client."""


async def quarantine_unmapped(batch: Batch[bytes], ctx: Context[None]) -> None:
    """Quarantine every message of stream `UNMAPPED` except the platform's own to devices.

    The platform sends by NATS. A message that came by MQTT on a downlink topic is a command that
    the platform did not give, so it is quarantined too.
    """
    refused = [
        (event.message, refusal) for event in batch if (refusal := judge(event.message)) is not None
    ]
    if refused:
        async with ctx.postgres.acquire() as connection, connection.transaction():
            unkept = await quarantine_many(connection, refused)
        log_refusals(ctx, (refusal for _, refusal in refused), unkept)


def judge(message: Message) -> Refusal | None:
    """Why the message is refused; None for a message that the platform sent."""
    text = mqtt_topic(message.subject)
    topic = parse_topic(text)
    if not isinstance(topic, Topic):
        return Refusal(BAD_TOPIC_FORMAT, topic.reason, text)
    if topic.msg_type in DOWNLINKS:
        if _FROM_MQTT not in message.headers:
            return None
        return Refusal(
            BAD_TOPIC_FORMAT, "the topic is for messages to devices, not from devices", topic
        )
    return Refusal(BAD_TOPIC_FORMAT, "the broker maps this message type to no stream", topic)


__all__ = ["judge", "quarantine_unmapped"]
