"""Batches of a device over HTTP: `…/device/{device_id}/{msg_type}/batch`, one answer for each item.

An item is judged and stored as if it had come alone. The device proves itself once for the batch,
before its body is read, so that only devices can make the gateway expand and parse half a megabyte.
"""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple

import orjson

from functions.domain import strict_json
from functions.domain.topics import Topic
from functions.http_gateway.bodies import BodyReader, media_type_of, read_object
from functions.http_gateway.content_coding import expand, is_gzip
from functions.http_gateway.device_admission import DeviceAdmission
from functions.http_gateway.device_messages import (
    header_token,
    make_envelope,
    message_id,
    read_topic,
    with_token,
)
from functions.http_gateway.device_resources import BATCH
from functions.http_gateway.file_bodies import LINES
from functions.http_gateway.idempotency import idempotency_key
from functions.http_gateway.problems import ProblemError
from functions.http_gateway.requests import Request
from functions.http_gateway.settings import GatewaySettings
from functions.http_gateway.storing import Storage, trace_headers
from runtime import Context

_AT_ONCE = 50

_Result = dict[str, Any]


class _Item(NamedTuple):
    """One message: what is stored, and how often the same has come before in this batch."""

    payload: bytes
    earlier: int


class _Batch(NamedTuple):
    """What all items share."""

    topic: Topic
    username: str
    key: str | None
    headers: Mapping[str, str]


class DeviceBatches:
    """Stores the items of a batch, each for itself."""

    def __init__(
        self,
        ctx: Context,
        storage: Storage,
        bodies: BodyReader,
        admission: DeviceAdmission | None,
    ) -> None:
        """`admission` checks tokens and rates; None leaves that to function `ingest`."""
        self._storage = storage
        self._bodies = bodies
        self._admission = admission
        self._settings: GatewaySettings = ctx.settings

    async def store(self, request: Request) -> tuple[int, bytes]:
        """Status and body of the answer: 202 when all items are stored, else 207.

        Raises:
            ProblemError: the batch as a whole is refused, or no item of it could be stored at
                present.
        """
        topic = read_topic(request.scope["raw_path"].removesuffix(BATCH))
        has_lines = _has_lines(request)
        is_coded = is_gzip(request)
        key = idempotency_key(request)
        token = header_token(request)
        username = ""
        if self._admission is not None:
            username = await self._admission.require(request, topic, token)
        batch = _Batch(topic, username, key, trace_headers(request))
        body = await self._read(request, is_coded=is_coded)
        raw = self._split(body, has_lines=has_lines)
        seen: Counter[bytes] = Counter()
        results: list[_Result] = []
        for start in range(0, len(raw), _AT_ONCE):
            # A part at a time, so that a large batch lets other requests run.
            part = [self._judge(each, token, seen) for each in raw[start : start + _AT_ONCE]]
            stored = (self._store(batch, each) for each in part)
            results += await asyncio.gather(*stored)
        return _answer(results)

    async def _read(self, request: Request, *, is_coded: bool) -> bytes:
        limit_bytes = self._settings.max_batch_bytes
        body = await self._bodies.read(request, limit_bytes=limit_bytes)
        return expand(body, limit_bytes=limit_bytes) if is_coded else body

    def _split(self, body: bytes, *, has_lines: bool) -> Sequence[bytes]:
        """The bytes of each item: a line as it is, an element of an array as it is written anew."""
        if has_lines:
            self._require_few(body.count(b"\n"))
            items = [line for line in body.split(b"\n") if line.strip()]
            self._require_few(len(items))
        else:
            values = _read_array(body)
            self._require_few(len(values))
            items = [orjson.dumps(value) for value in values]
        if not items:
            raise ProblemError(422, "INVALID_PAYLOAD", "The batch has no messages.")
        return items

    def _require_few(self, count: int) -> None:
        most = self._settings.max_batch_items
        if count > most:
            raise ProblemError(413, "TOO_MANY_ITEMS", f"A batch may have at most {most} messages.")

    def _judge(self, raw: bytes, token: str | None, seen: Counter[bytes]) -> _Item | ProblemError:
        limit_bytes = self._settings.max_device_body_bytes
        if len(raw) > limit_bytes:
            return ProblemError(
                413, "BODY_TOO_LARGE", f"A message may have at most {limit_bytes} bytes."
            )
        try:
            fields = read_object(raw, code="INVALID_PAYLOAD")
        except ProblemError as refused:
            return refused
        if self._admission is not None and fields.get("provision_token", token) != token:
            return ProblemError(403, "TOKEN_INVALID", "This is not the token of the batch.")
        payload = raw if "provision_token" in fields else with_token(raw, fields, token)
        digest = hashlib.sha256(payload).digest()
        seen[digest] += 1
        return _Item(payload, seen[digest] - 1)

    async def _store(
        self,
        batch: _Batch,
        item: _Item | ProblemError,
    ) -> _Result:
        topic, key = batch.topic, batch.key
        try:
            if isinstance(item, ProblemError):
                raise item
            if self._admission is not None:
                self._admission.rates.take(topic)
            # The same reading twice in one batch is two; the same batch twice is one.
            own_key = key if key is None or not item.earlier else f"{key}/{item.earlier}"
            ack = await self._storage.store(
                topic.stream_subject,
                make_envelope(topic, item.payload, batch.username),
                msg_id=message_id(topic, own_key, item.payload),
                headers=batch.headers,
            )
        except ProblemError as refused:
            return {"status": refused.status, "code": refused.code, "detail": refused.detail}
        stored = {"stream": ack.stream, "sequence": ack.sequence, "duplicate": ack.duplicate}
        return {"status": int(HTTPStatus.ACCEPTED), **stored}


def _has_lines(request: Request) -> bool:
    media_type = media_type_of(request)
    if media_type in LINES:
        return True
    if media_type == "application/json":
        return False
    raise ProblemError(
        415,
        "UNSUPPORTED_MEDIA_TYPE",
        "Send an array as application/json, or lines as application/x-ndjson.",
    )


def _read_array(body: bytes) -> list[Any]:
    try:
        # The array is one level around messages that may have as many as one that comes alone.
        value = strict_json.loads(body, strict_json.MAX_DEPTH + 1)
    except strict_json.BadJson as bad:
        raise ProblemError(
            400, "INVALID_JSON", f"The body is not acceptable JSON: {bad.reason}."
        ) from None
    if not isinstance(value, list):
        raise ProblemError(422, "INVALID_PAYLOAD", "The body of a batch must be a JSON array.")
    return value


def _answer(results: Sequence[_Result]) -> tuple[int, bytes]:
    statuses = Counter(result["status"] for result in results)
    accepted = statuses[HTTPStatus.ACCEPTED]
    if statuses[HTTPStatus.SERVICE_UNAVAILABLE] == len(results):
        raise ProblemError(503, "NOT_STORED", "No message could be stored; send the batch again.")
    status = HTTPStatus.ACCEPTED if accepted == len(results) else HTTPStatus.MULTI_STATUS
    document = {
        "accepted": accepted,
        "refused": len(results) - accepted,
        "items": [{"index": index, **result} for index, result in enumerate(results)],
    }
    return int(status), orjson.dumps(document)


__all__ = ["DeviceBatches"]
