"""Takes what nats-server's MQTT listener maps to no other stream: telemetry, and mistakes.

The listener can map message types only one by one, and the platform's own messages to devices have
topics of the same form. So telemetry of all types that it does not know comes here, and is ingested
as any other. The rest goes to quarantine, so that a device's mistake shows.
"""

from functions.domain.envelope import BAD_TOPIC_FORMAT, FROM_LISTENER
from functions.domain.quarantine import Refusal, quarantine_many
from functions.domain.refusal_log import log_refusals
from functions.domain.topics import Topic, mqtt_topic, parse_topic, topic_from_subject
from functions.ingest import IngestSettings, IngestState, Settings, ingest, start, stop
from runtime import Batch, Context, Event, Message


async def quarantine_unmapped(batch: Batch[bytes], ctx: Context[IngestState]) -> None:
    """Ingest telemetry, and quarantine the rest except the platform's own messages to devices.

    The platform sends by NATS. A message that came by MQTT on a downlink topic is a command that
    the platform did not give, so it is quarantined too.
    """
    telemetry: list[Event[bytes]] = []
    refused: list[tuple[Message, Refusal]] = []
    for event in batch:
        if is_telemetry(event.message):
            telemetry.append(event)
        elif (refusal := judge(event.message)) is not None:
            refused.append((event.message, refusal))
    if telemetry:
        await ingest(Batch(telemetry), ctx)
    if refused:
        async with ctx.postgres.acquire() as connection, connection.transaction():
            unkept = await quarantine_many(connection, refused)
        log_refusals(ctx, (refusal for _, refusal in refused), unkept)


def is_telemetry(message: Message) -> bool:
    """Whether the message is on a device's topic of a type that only devices send."""
    topic = topic_from_subject(message.subject)
    return isinstance(topic, Topic) and not topic.is_downlink


def judge(message: Message) -> Refusal | None:
    """Why a message that is no telemetry is refused; None for one that the platform sent."""
    text = mqtt_topic(message.subject)
    topic = parse_topic(text)
    if not isinstance(topic, Topic):
        return Refusal(BAD_TOPIC_FORMAT, topic.reason, text)
    if topic.is_downlink:
        if FROM_LISTENER not in message.headers:
            return None
        return Refusal(
            BAD_TOPIC_FORMAT, "the topic is for messages to devices, not from devices", topic
        )
    return Refusal(BAD_TOPIC_FORMAT, "the broker maps this message type to no stream", topic)


__all__ = [
    "IngestSettings",
    "Settings",
    "is_telemetry",
    "judge",
    "quarantine_unmapped",
    "start",
    "stop",
]
