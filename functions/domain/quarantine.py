"""Stores refused messages with the reason, the original bytes and the headers, and counts them.

A message counts for the tenant in its subject (`tenant_of_subject`), if that tenant exists, and
takes room of that tenant's. Quarantine keeps so many messages and bytes of each tenant, and a small
sample of all tenants that do not exist; beyond that a message is counted and not kept, except for
its place in its stream, by which a redelivery is known for a day.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

import asyncpg

from functions.domain.envelope import UNSUPPORTED_VERSION as _UNSUPPORTED
from functions.domain.envelope import BadEnvelope, Envelope
from functions.domain.named_sql import read_queries
from functions.domain.topics import BadTopic, Topic, is_tenant_id, topic_from_subject
from runtime import Message

_QUERIES = read_queries(Path(__file__).with_name("quarantine.sql"))
_TEXT_LENGTH = 512
_NS_PER_US = 1000
_US_PER_S = 1_000_000

Executor: TypeAlias = (
    "asyncpg.Pool[asyncpg.Record] | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"
)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a message is not accepted.

    Attributes:
        reason: the reason code.
        detail: one sentence that holds no secret.
        topic: the topic, or its text when it is invalid; empty when unknown.
        site_id: the site that the message names; empty when unknown.
    """

    reason: str
    detail: str
    topic: Topic | str = ""
    site_id: str = ""

    @property
    def kind(self) -> str:
        """The reason code without what the sender wrote into it: one of a bounded number."""
        return _UNSUPPORTED if self.reason.startswith(_UNSUPPORTED) else self.reason

    @classmethod
    def of_envelope(cls, envelope: Envelope, reason: str, detail: str) -> "Refusal":
        """A refusal of a message whose envelope was read."""
        site_id = envelope.payload.get("site_id")
        return cls(reason, detail, envelope.topic, site_id if isinstance(site_id, str) else "")

    @classmethod
    def of_message(cls, message: Message, bad: BadEnvelope) -> "Refusal":
        """A refusal of a message whose envelope could not be read."""
        topic = bad.topic or topic_from_subject(message.subject)
        known = "" if topic is None or isinstance(topic, BadTopic) else topic
        return cls(bad.code, bad.detail, known)


async def quarantine(executor: Executor, message: Message, refusal: Refusal) -> Mapping[str, int]:
    """Store and count a refused message; see `quarantine_many`."""
    return await quarantine_many(executor, [(message, refusal)])


async def quarantine_many(
    executor: Executor, refused: Sequence[tuple[Message, Refusal]]
) -> Mapping[str, int]:
    """Store refused messages as far as quarantine has room for their tenants, and count them.

    A redelivery of a message adds no second row, and counts as a duplicate. Several hosts do not
    see each other's messages of the same moment, so a tenant may exceed its room by one batch of
    each.

    Returns:
        How many were counted only, by the tenant for which they count; empty when all were kept.
    """
    if not refused:
        return {}
    rows = [_row(message, refusal) for message, refusal in refused]
    found = await executor.fetch(_QUERIES["insert"], *map(list, zip(*rows, strict=True)))
    return {row["counted_for"]: row["unkept"] for row in found}


async def is_refused(executor: Executor, message: Message) -> bool:
    """Whether an earlier delivery of the message was refused."""
    refused: bool = await executor.fetchval(
        _QUERIES["is_refused"], message.stream, message.sequence, _stored_at(message)
    )
    return refused


def tenant_of_subject(subject: str) -> str:
    """The tenant in a subject such as `telemetry.{tenant_id}`; empty when there is none.

    `tenant.unmapped`, on which a bridge stores what names no tenant, has none either.
    """
    family, _, rest = subject.partition(".")
    tenant_id, dot, _ = rest.partition(".")
    if (family == "tenant" and not dot) or not is_tenant_id(tenant_id):
        return ""
    return tenant_id


def _stored_at(message: Message) -> datetime:
    return datetime.fromtimestamp(message.stored_at_ns // _NS_PER_US / _US_PER_S, tz=UTC)


def _row(message: Message, refusal: Refusal) -> tuple[object, ...]:
    topic = refusal.topic
    known = topic if isinstance(topic, Topic) else Topic("", "", "")
    return (
        message.stream,
        message.sequence,
        _stored_at(message),
        storable(message.subject),
        storable(topic.text if isinstance(topic, Topic) else topic),
        known.tenant_id,
        storable(refusal.site_id),
        known.device_id,
        known.msg_type,
        storable(refusal.reason),
        storable(refusal.detail),
        message.data,
        json.dumps({storable(key): storable(value) for key, value in message.headers.items()}),
        tenant_of_subject(message.subject),
        storable(refusal.kind),
    )


def storable(text: str) -> str:
    """Text that PostgreSQL accepts: no NUL, no lone surrogate, at most 512 characters."""
    if len(text) <= _TEXT_LENGTH and text.isascii() and "\x00" not in text:
        return text  # Nearly every text: a flood that is refused has eight of them in each message.
    cut = text[:_TEXT_LENGTH].replace("\x00", "\ufffd")
    return cut.encode(errors="replace").decode()


__all__ = [
    "Executor",
    "Refusal",
    "is_refused",
    "quarantine",
    "quarantine_many",
    "storable",
    "tenant_of_subject",
]
