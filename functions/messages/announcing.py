"""Publishes messages to their queues, and their transitions to the status subjects.

Both stand in the database first. What is not known to be published is published again by
`reconcile`, under the same message id.
"""

from typing import Any

import orjson

from functions.messages.contents import QUEUES, OutMessage
from functions.messages.store import MessageStore, Transition
from runtime import Context, PubAck, Publication, Unavailable, Unsendable


def status_publication(transition: Transition) -> Publication:
    """The message that tells of a transition, under an id that only this transition has."""
    document = {
        "message_id": transition.message_id,
        "tenant_id": transition.tenant_id,
        "kind": transition.kind,
        "status": transition.status,
        "number": transition.number,
        "attempts": transition.attempts,
        "provider": transition.provider,
        "provider_id": transition.provider_id,
        "error_code": transition.error_code,
        "at": transition.at,
    }
    return Publication(
        QUEUES[transition.kind].status,
        orjson.dumps(document),
        f"{transition.tenant_id}.{transition.message_id}.{transition.number}",
    )


def send_publication(message: OutMessage, number: int) -> Publication:
    """The message in its queue, under an id of its transition to queued."""
    return Publication(
        QUEUES[message.kind].send,
        message.encode(),
        f"{message.tenant_id}.{message.message_id}.{number}.send",
    )


async def announce(ctx: Context[Any], store: MessageStore, transition: Transition) -> None:
    """Publish a transition on its status subject; when NATS is away, `reconcile` does it later."""
    if await _publish(ctx, status_publication(transition)) is not None:
        store.note(store.mark_announced(transition))


async def enqueue(
    ctx: Context[Any], store: MessageStore, message: OutMessage, transition: Transition
) -> None:
    """Publish a queued message to its queue; when NATS is away, `reconcile` does it later."""
    ack = await _publish(ctx, send_publication(message, transition.number))
    if ack is not None:
        await store.mark_published(transition, ack.sequence)


async def enqueue_accepted(
    ctx: Context[Any], store: MessageStore, message: OutMessage, transition: Transition
) -> None:
    """Publish a message that was just accepted, and its first transition, together."""
    both = [send_publication(message, transition.number), status_publication(transition)]
    try:
        ack, _ = await ctx.publish_many(both)
    except (Unavailable, Unsendable) as failure:
        _tell(ctx, both[0].subject, failure)
        return
    store.note(store.mark_accepted(transition, ack.sequence))


async def _publish(ctx: Context[Any], publication: Publication) -> PubAck | None:
    try:
        return await ctx.publish(publication.subject, publication.data, msg_id=publication.msg_id)
    except (Unavailable, Unsendable) as failure:
        _tell(ctx, publication.subject, failure)
        return None


def _tell(ctx: Context[Any], subject: str, failure: Exception) -> None:
    ctx.log.warning(
        "A message is not published yet; it is published when its row is looked at",
        subject=subject,
        error_type=type(failure).__name__,
    )


__all__ = ["announce", "enqueue", "enqueue_accepted", "send_publication", "status_publication"]
