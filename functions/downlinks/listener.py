"""The door to devices at nats-server's own MQTT listener.

The listener passes a message on with QoS 0 and says nothing of it, not even whether anybody is
subscribed. So a command counts as sent when its device has an open session at that moment.
"""

from datetime import UTC, datetime

from functions.domain.downlinks import Downlink, SentCommand, read_downlink, report_sent
from functions.domain.mqtt_sessions import find_connected
from functions.domain.topics import downlink_subject
from runtime import (
    Batch,
    ConfigError,
    Context,
    NoAnswer,
    RequestFailed,
    SystemPort,
    Unavailable,
    Unsendable,
)

System = SystemPort | None


async def start(ctx: Context[System]) -> System:
    """The system account; None where the host has no address of it."""
    try:
        return ctx.nats_system
    except ConfigError:
        ctx.log.info(
            "Commands by MQTT stay queued until devices answer them: nobody says whether a device"
            " is connected, as NATS_SYSTEM_URL is not set"
        )
        return None


async def send_downlinks(batch: Batch[bytes], ctx: Context[System]) -> None:
    """Publish messages on their devices' topics, and report the commands of connected devices.

    A message that is none for a device, or that is too late, is dropped.
    """
    commands: list[SentCommand] = []
    dropped: list[str] = []
    for event in batch:
        downlink = read_downlink(event.message)
        if not isinstance(downlink, Downlink):
            dropped.append(downlink.reason)
        elif not downlink.has_expired(datetime.now(UTC)):
            await _publish(ctx, downlink)
            if downlink.command is not None:
                commands.append(downlink.command)
    if dropped:
        # One line for all: whoever may publish here must not fill the log.
        ctx.log.warning(
            "Messages to no device were dropped", messages=len(dropped), reason=dropped[0]
        )
    if ctx.state is not None and commands:
        await _report(ctx, ctx.state, commands)


async def _publish(ctx: Context[System], downlink: Downlink) -> None:
    topic = downlink.topic
    subject = downlink_subject(topic.tenant_id, topic.device_id, topic.msg_type)
    try:
        await ctx.publish_core(subject, downlink.body)
    except Unsendable as failure:
        ctx.log.warning("A message to a device cannot be sent", reason=failure.reason)


async def _report(ctx: Context[System], system: SystemPort, commands: list[SentCommand]) -> None:
    """Report what was sent. What cannot be reported stays queued, and is sent again."""
    try:
        connected = await find_connected(
            system, ((each.tenant_id, each.device_id) for each in commands)
        )
        sent = [each for each in commands if (each.tenant_id, each.device_id) in connected]
        await report_sent(ctx, sent)
    except (NoAnswer, RequestFailed, Unavailable) as failure:
        ctx.log.warning(
            "Commands were sent and are still queued, so they are sent again",
            commands=len(commands),
            error_type=type(failure).__name__,
        )


__all__ = ["send_downlinks", "start"]
