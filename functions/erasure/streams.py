"""Deletes a tenant's messages from streams."""

import base64
from collections.abc import Awaitable, Callable
from typing import Any

import orjson

from functions.domain.mqtt_session_records import read_record, removal_of
from functions.erasure.belonging import (
    StoredMessage,
    is_of_tenant,
    purges,
    subjects_of,
    tail_of,
)
from runtime import Context, RequestFailed

_NOT_FOUND = 404
_API_S = 30.0
_NOTE_EVERY = 500

Note = Callable[[str, int, int | None], Awaitable[None]]
"""Takes a stream, how many messages were deleted, and up to which sequence it was read, if so."""


class TenantStreams:
    """The streams, as far as they hold messages of one tenant.

    Args:
        ctx: of the function.
        tenant_id: the tenant.
        note: is told of each step.
    """

    def __init__(self, ctx: Context[None], tenant_id: str, note: Note) -> None:
        self._ctx = ctx
        self._tenant_id = tenant_id
        self._note = note

    async def purge(self) -> dict[str, int]:
        """Purge the tenant's subjects, in every stream; how many messages went, by stream.

        Raises:
            RequestFailed: JetStream refused it.
            Unavailable: JetStream does not answer.
        """
        deleted: dict[str, int] = {}
        for stream in await self._names():
            for subjects in await self._filters(stream):
                answer = await self._api(f"STREAM.PURGE.{stream}", {"filter": subjects})
                if count := int(answer["purged"]):
                    deleted[stream] = deleted.get(stream, 0) + count
                    await self._note(stream, count, None)
        return deleted

    async def delete_consumers(self, stream: str, has_time: Callable[[], bool]) -> bool:
        """Delete consumers that are for subjects of the tenant alone, such as an MQTT client's.

        Args:
            stream: the stream; nothing is done when there is none.
            has_time: False to end in the middle.

        Returns:
            Whether all were looked at.

        Raises:
            RequestFailed: JetStream refused it.
            Unavailable: JetStream does not answer.
        """
        offset = 0
        while has_time():
            page = await self._found(f"CONSUMER.LIST.{stream}", {"offset": offset})
            listed = (page or {}).get("consumers") or []
            its_own = [each["name"] for each in listed if self._is_for_tenant(each["config"])]
            for name in its_own:
                await self._found(f"CONSUMER.DELETE.{stream}.{name}", {})
            # Those that are gone leave their places in the list to others.
            offset += len(listed) - len(its_own)
            if page is None or not listed or offset >= page["total"] - len(its_own):
                return True
        return False

    def _is_for_tenant(self, config: dict[str, Any]) -> bool:
        subjects = config.get("filter_subjects") or [config.get("filter_subject") or ""]
        return all(purges([subject], self._tenant_id) for subject in subjects)

    async def read(self, stream: str, after: int, has_time: Callable[[], bool]) -> tuple[int, bool]:
        """Look at each message of a stream, and delete the tenant's.

        Args:
            stream: the stream; nothing is done when there is none.
            after: the sequence up to which it was read before.
            has_time: False to end in the middle.

        Returns:
            How many messages were deleted, and whether the end was reached.

        Raises:
            RequestFailed: JetStream refused it.
            Unavailable: JetStream does not answer.
        """
        total = deleted = looked = 0
        while has_time():
            message = await self._next(stream, after)
            if message is None:
                await self._note(stream, deleted, after)
                return total + deleted, True
            if is_of_tenant(await self._joined(stream, message), self._tenant_id):
                deleted += await self._delete(stream, message)
            after, looked = message.sequence, looked + 1
            if looked % _NOTE_EVERY == 0:
                await self._note(stream, deleted, after)
                total, deleted = total + deleted, 0
        await self._note(stream, deleted, after)
        return total + deleted, False

    async def _names(self) -> list[str]:
        names: list[str] = []
        while True:
            page = await self._api("STREAM.NAMES", {"offset": len(names)})
            found = page.get("streams") or []
            names += found
            if not found or len(names) >= page.get("total", 0):
                return names

    async def _filters(self, stream: str) -> frozenset[str]:
        """What is to be purged; nothing where no subject is the tenant's, since a purge costs."""
        subjects: set[str] = set()
        for pattern in subjects_of(self._tenant_id):
            info = await self._found(f"STREAM.INFO.{stream}", {"subjects_filter": pattern})
            subjects.update((info or {}).get("state", {}).get("subjects") or ())
        return purges(subjects, self._tenant_id)

    async def _joined(self, stream: str, message: StoredMessage) -> StoredMessage:
        """The message with its end, which is stored apart if it was too large for one."""
        tail = tail_of(message)
        end = None if tail is None else await self._get(stream, {"seq": tail})
        return message if end is None else message._replace(data=message.data + end.data)

    async def _next(self, stream: str, after: int) -> StoredMessage | None:
        return await self._get(stream, {"seq": after + 1, "next_by_subj": ">"})

    async def _get(self, stream: str, asked: dict[str, Any]) -> StoredMessage | None:
        answer = await self._found(f"STREAM.MSG.GET.{stream}", asked)
        if answer is None:
            return None
        found = answer["message"]
        return StoredMessage(
            found["seq"],
            found["subject"],
            base64.b64decode(found.get("hdrs") or ""),
            base64.b64decode(found.get("data") or ""),
        )

    async def _delete(self, stream: str, message: StoredMessage) -> int:
        # What a message leads to goes first: once the message is gone nothing leads to it.
        record = read_record(message.subject, message.data)
        for subject, payload in () if record is None else removal_of(record):
            await self._found(subject, payload)
        tail = tail_of(message)
        for sequence in (*([] if tail is None else [tail]), message.sequence):
            try:
                await self._api(f"STREAM.MSG.DELETE.{stream}", {"seq": sequence})
            except RequestFailed:
                # The error for a message that is gone differs between server versions.
                if await self._found(f"STREAM.MSG.GET.{stream}", {"seq": sequence}) is not None:
                    raise
        return 1

    async def _found(self, subject: str, payload: dict[str, Any]) -> dict[str, Any] | None:
        try:
            return await self._api(subject, payload)
        except RequestFailed as refusal:
            if refusal.code != _NOT_FOUND:
                raise
            return None

    async def _api(self, subject: str, payload: dict[str, Any]) -> dict[str, Any]:
        answer = await self._ctx.request(
            f"$JS.API.{subject}", orjson.dumps(payload), timeout_s=_API_S
        )
        told: dict[str, Any] = orjson.loads(answer.data)
        if error := told.get("error"):
            raise RequestFailed(subject, int(error.get("code", 500)), error.get("description", ""))
        return told


__all__ = ["Note", "TenantStreams"]
