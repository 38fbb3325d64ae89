"""Removes MQTT sessions whose clients are gone, which nats-server keeps for ever.

Only the record of a session tells which consumers are its. nats-server can let idle consumers go
by itself (`consumer_inactive_threshold`), but it keeps the record: a device that comes back is then
told that its session is present, and hears nothing on it. So the record goes together with them.
"""

import base64
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from functions.domain.mqtt_session_records import (
    QUEUED,
    SESSIONS,
    SessionRecord,
    read_record,
    record_subject,
    removal_of,
)
from runtime import Context

_MOST_AT_ONCE = 500
_FROM_THE_START_S = 3600.0
_API_S = 10.0
_MISSING = 404


class StoredSessions:
    """The records of sessions, and how they are removed."""

    def __init__(self, ctx: Context[Any]) -> None:
        self._ctx = ctx

    async def next(self, after: int) -> dict[str, Any] | None:
        """The next record's message after this sequence."""
        return await self._get({"seq": after + 1, "next_by_subj": "$MQTT.sess.>"})

    async def forget(self, client_id: str) -> None:
        """Remove the session of a client, if there is one."""
        message = await self._get({"last_by_subj": record_subject(client_id)})
        record = None if message is None else read_message(message)
        if message is not None and record is not None and record.client_id == client_id:
            await self.remove(record, message["seq"])

    async def is_heard(self, record: SessionRecord) -> bool:
        """Whether a client is at a server that did not tell of its connections."""
        if not record.consumers:
            return False
        info = await self._ask(f"CONSUMER.INFO.{QUEUED}.{record.consumers[0]}", {})
        return bool(info.get("push_bound"))

    async def remove(self, record: SessionRecord, sequence: int) -> None:
        """Remove all of a session; its record, at the sequence, last."""
        for subject, payload in removal_of(record):
            answer = await self._ask(subject, payload)
            if answer.get("error", {}).get("code", _MISSING) != _MISSING:
                return  # The record has to stay: nothing else leads to the rest.
        await self._ask(f"STREAM.MSG.DELETE.{SESSIONS}", {"seq": sequence})

    async def _get(self, asked: dict[str, Any]) -> dict[str, Any] | None:
        answer = await self._ask(f"STREAM.MSG.GET.{SESSIONS}", asked)
        message: dict[str, Any] | None = answer.get("message")
        return message

    async def _ask(self, operation: str, request: dict[str, Any]) -> dict[str, Any]:
        reply = await self._ctx.request(
            f"$JS.API.{operation}", orjson.dumps(request), timeout_s=_API_S
        )
        answer: dict[str, Any] = orjson.loads(reply.data)
        return answer


def read_message(message: dict[str, Any]) -> SessionRecord | None:
    """The record in a message as JetStream's API gives it."""
    return read_record(message["subject"], base64.b64decode(message.get("data") or ""))


@dataclass(slots=True)
class ExpiredSessions:
    """Looks at the records that were not written for long, and removes those without a client.

    A record is written when its client connects or subscribes, and the stream has them in the order
    of that. A session whose client is still connected is looked at again after an hour.

    Attributes:
        ctx: of the function.
        expiry: how long a session may be without its client.
        connected: asks for the client ids of all open connections; None if no server answers.
    """

    ctx: Context[Any]
    expiry: timedelta
    connected: Callable[[], Awaitable[set[str] | None]]
    _after: int = field(default=0, init=False)
    _began_at: datetime = field(default=datetime.min.replace(tzinfo=UTC), init=False)

    async def remove(self) -> int:
        """Remove those that have expired; how many. At most 500 are looked at in one call.

        Raises:
            Unavailable: JetStream does not answer.
        """
        now, stored = datetime.now(UTC), StoredSessions(self.ctx)
        if now - self._began_at > timedelta(seconds=_FROM_THE_START_S):
            self._after, self._began_at = 0, now
        connected: set[str] | None = None
        removed = 0
        for _ in range(_MOST_AT_ONCE):
            message = await stored.next(self._after)
            if message is None or _read_time(message["time"]) > now - self.expiry:
                break
            record = read_message(message)
            if record is not None:
                connected = await self.connected() if connected is None else connected
                if connected is None:
                    break
                if record.client_id not in connected and not await stored.is_heard(record):
                    await stored.remove(record, message["seq"])
                    removed += 1
            self._after = message["seq"]
        if removed:
            self.ctx.log.info("MQTT sessions without their clients have expired", sessions=removed)
        return removed


def _read_time(text: str) -> datetime:
    # Python reads at most microseconds, Go writes up to nanoseconds.
    return datetime.fromisoformat(re.sub(r"(\.\d{1,6})\d*", r"\1", text))


__all__ = ["ExpiredSessions", "StoredSessions"]
