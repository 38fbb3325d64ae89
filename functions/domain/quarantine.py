"""Stores refused messages with the reason, the original bytes and the headers."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

import asyncpg

from functions.domain.envelope import BadEnvelope, Envelope
from functions.domain.named_sql import read_queries
from functions.domain.topics import BadTopic, Topic, topic_from_subject
from runtime import Message

_QUERIES = read_queries(Path(__file__).with_name("quarantine.sql"))
_TEXT_LENGTH = 256
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


async def quarantine(executor: Executor, message: Message, refusal: Refusal) -> None:
    """Store a refused message; a redelivery of the message adds no second row."""
    await executor.execute(_QUERIES["insert"], *_row(message, refusal))


async def quarantine_many(executor: Executor, refused: list[tuple[Message, Refusal]]) -> None:
    """Store several refused messages; a redelivery adds no second row."""
    await executor.executemany(
        _QUERIES["insert"], [_row(message, refusal) for message, refusal in refused]
    )


async def is_quarantined(executor: Executor, message: Message) -> bool:
    """Whether an earlier delivery of the message was refused."""
    kept: bool = await executor.fetchval(
        _QUERIES["is_kept"], message.stream, message.sequence, _stored_at(message)
    )
    return kept


def _stored_at(message: Message) -> datetime:
    return datetime.fromtimestamp(message.stored_at_ns // _NS_PER_US / _US_PER_S, tz=UTC)


def _row(message: Message, refusal: Refusal) -> tuple[object, ...]:
    topic = refusal.topic
    known = topic if isinstance(topic, Topic) else Topic("", "", "")
    return (
        message.stream,
        message.sequence,
        _stored_at(message),
        _storable(message.subject),
        _storable(topic.text if isinstance(topic, Topic) else topic),
        known.tenant_id,
        _storable(refusal.site_id),
        known.device_id,
        known.msg_type,
        _storable(refusal.reason),
        _storable(refusal.detail),
        message.data,
        json.dumps({_storable(key): _storable(value) for key, value in message.headers.items()}),
    )


def _storable(text: str) -> str:
    """Text that PostgreSQL accepts: no NUL, no lone surrogate, at most 256 characters."""
    cut = text[:_TEXT_LENGTH].replace("\x00", "\ufffd")
    return cut.encode(errors="replace").decode()


__all__ = ["Executor", "Refusal", "is_quarantined", "quarantine", "quarantine_many"]
