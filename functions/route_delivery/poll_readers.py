"""Endpoints for receivers that read a polled route's jobs over HTTP, each by its own position.

A position is a durable JetStream consumer of the route's subject. It is made at the reader's first
request, and the server removes it when it has not been used for as long as jobs are kept.
"""

import asyncio
import base64
import binascii
import hmac
import re
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import orjson
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from functions.domain.destination_secrets import Stored, unseal
from functions.domain.identifiers import TenantId
from functions.domain.named_sql import read_queries
from functions.domain.secret_box import SecretBox, SecretsSettings, Unreadable
from functions.route_delivery.poll import PollDestination
from runtime import Context, Event, Message, NoAnswer, Reject, RequestFailed

STREAM = "POLLED"
MAX_READERS = 10
KEPT_S = 7 * 86_400
ACK_WAIT_S = 30
MAX_PENDING = 1000
MAX_ANSWER_BYTES = 400_000
MAX_WAITING = 32
_NS = 1_000_000_000
_QUERIES = read_queries(Path(__file__).with_name("poll.sql"))
_CURSOR = re.compile(r"(?:[A-Za-z0-9_-]{1,64}\.){0,2}[0-9]+(?:\.[0-9]+){4}(?:\.[A-Za-z0-9]{1,64})?")
_TOKENS_V1 = 9
_NOT_FOUND = 404

# The name under which the host looks for a function's settings.
Settings = SecretsSettings
ReaderName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,32}$")]


class ReaderRequest(BaseModel):
    """A request of a reader. The route's secret is the bearer token."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    tenant_id: TenantId
    route_id: UUID


class Poll(ReaderRequest):
    """A request for the next jobs.

    `consumer` names the reader: each name has its own position. `ack` is the cursor of the answer
    before: it confirms all of that answer's jobs. Jobs that are not confirmed within 30 s come
    again.
    """

    consumer: ReaderName
    ack: Annotated[str, StringConstraints(max_length=512)] | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 50
    wait_s: Annotated[float, Field(ge=0, le=8)] = 0.0


class Seek(ReaderRequest):
    """A new place of a reader: before a sequence, at a time, or without both at the beginning.

    A time that is not past means behind all jobs that are there.
    """

    consumer: ReaderName
    sequence: Annotated[int, Field(ge=1, le=2**63 - 1)] | None = None
    time: AwareDatetime | None = None

    @model_validator(mode="after")
    def _is_one_place(self) -> "Seek":
        if self.sequence is not None and self.time is not None:
            raise ValueError("write sequence or time, not both")
        return self


class Forget(ReaderRequest):
    """A request to forget a reader's position."""

    consumer: ReaderName


class PolledJob(BaseModel):
    """A job.

    Attributes:
        sequence: its place, for `seek`.
        attempt: 1, or more when it was not confirmed in time.
        body: what a webhook would get.
    """

    sequence: int
    stored_at: datetime
    attempt: int
    body: Any


class Polled(BaseModel):
    """The next jobs of a reader.

    Attributes:
        cursor: confirms all of them, as `ack` of the next request; None without jobs.
    """

    items: list[PolledJob]
    cursor: str | None


class Reader(BaseModel):
    """A reader; `moved_at` is when it was made, or last moved by `seek`."""

    consumer: str
    moved_at: datetime


class Readers(BaseModel):
    """The readers of a route."""

    items: list[Reader]


async def start(ctx: Context) -> Counter[str]:
    """The number of each tenant's polls that are under way."""
    del ctx
    return Counter()


async def poll(event: Event[Poll], ctx: Context[Counter[str]]) -> Polled:
    """The next jobs of a reader, which the cursor before confirms."""
    wanted, under_way = event.data, ctx.state
    await _require_token(event, ctx)
    if under_way[wanted.tenant_id] >= MAX_WAITING:
        # It would occupy a place that other tenants' polls need.
        wanted = wanted.model_copy(update={"wait_s": 0.0})
    under_way[wanted.tenant_id] += 1
    try:
        return await _read(wanted, ctx)
    finally:
        under_way[wanted.tenant_id] -= 1
        if not under_way[wanted.tenant_id]:
            del under_way[wanted.tenant_id]


async def _read(wanted: Poll, ctx: Context[Counter[str]]) -> Polled:
    generation = await ctx.postgres.fetchval(
        _QUERIES["find_reader"], wanted.route_id, wanted.consumer
    )
    if generation is None:
        generation = await _place(ctx, wanted, {"deliver_policy": "all"})
    durable = durable_of(wanted.route_id, wanted.consumer, generation)
    if wanted.ack is not None:
        await _confirm(ctx, durable, wanted.ack)
    try:
        found = await _pull(ctx, durable, wanted)
    except NoAnswer as silence:
        if silence.reason != "no responders" or await _exists(ctx, durable):
            raise
        # The server has removed it, because it was not used for as long as jobs are kept.
        generation = await _place(ctx, wanted, {"deliver_policy": "all"})
        durable = durable_of(wanted.route_id, wanted.consumer, generation)
        found = await _pull(ctx, durable, wanted)
    cursor = _cursor_of(found[-1].reply, durable) if found else None
    return Polled(items=[_job(each) for each in found], cursor=cursor)


async def seek(event: Event[Seek], ctx: Context) -> Reader:
    """Move a reader, or make one; cursors of its place before are worth nothing any more."""
    wanted = event.data
    await _require_token(event, ctx)
    start: dict[str, Any] = {"deliver_policy": "all"}
    if wanted.sequence is not None:
        start = {"deliver_policy": "by_start_sequence", "opt_start_seq": wanted.sequence}
    elif wanted.time is not None and wanted.time >= datetime.now(UTC):
        start = {"deliver_policy": "new"}
    elif wanted.time is not None:
        stamp = wanted.time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        start = {"deliver_policy": "by_start_time", "opt_start_time": stamp}
    await _place(ctx, wanted, start)
    return Reader(consumer=wanted.consumer, moved_at=datetime.now(UTC))


async def list_readers(event: Event[ReaderRequest], ctx: Context) -> Readers:
    """The readers of a route."""
    await _require_token(event, ctx)
    rows = await ctx.postgres.fetch(_QUERIES["list_readers"], event.data.route_id)
    return Readers(items=[Reader(consumer=row["name"], moved_at=row["moved_at"]) for row in rows])


async def forget_reader(event: Event[Forget], ctx: Context) -> Reader:
    """Forget a reader's position."""
    wanted = event.data
    await _require_token(event, ctx)
    generation = await ctx.postgres.fetchval(
        _QUERIES["remove_reader"], wanted.route_id, wanted.consumer
    )
    if generation is None:
        raise Reject("READER_NOT_FOUND", "The route has no such reader.", status=404)
    await _delete(ctx, durable_of(wanted.route_id, wanted.consumer, generation))
    return Reader(consumer=wanted.consumer, moved_at=datetime.now(UTC))


async def tidy_polled(ctx: Context) -> None:
    """Remove positions of deleted routes and readers, and readers whose position is gone."""
    rows = await ctx.postgres.fetch(_QUERIES["all_readers"])
    known = {durable_of(UUID(row["route_id"]), row["name"], row["generation"]): row for row in rows}
    found = await _list_durables(ctx)
    for durable in found - known.keys():
        await _delete(ctx, durable)
    gone = [row for durable, row in known.items() if durable not in found]
    await ctx.postgres.execute(
        _QUERIES["forget_readers"],
        [row["route_id"] for row in gone],
        [row["name"] for row in gone],
        [row["generation"] for row in gone],
    )
    await ctx.postgres.execute(_QUERIES["forget_bytes"])


def durable_of(route_id: UUID, reader: str, generation: int) -> str:
    """The name of a reader's consumer; another one for each of its places."""
    return f"poll-{route_id.hex}-{reader}-{generation}"


async def _require_token(event: Event[Any], ctx: Context) -> None:
    """Require the route's token.

    Raises:
        Reject: `WRONG_TOKEN`, also for a route that does not exist.
    """
    wanted: ReaderRequest = event.data
    row = await ctx.postgres.fetchrow(_QUERIES["find_route"], wanted.tenant_id, wanted.route_id)
    shown = event.headers.get("Authorization", "").removeprefix("Bearer ").encode()
    if row is None or not any(
        hmac.compare_digest(shown, token.encode()) for token in _tokens(ctx, row)
    ):
        raise Reject("WRONG_TOKEN", "This is not the token of a route that is polled.", status=403)


def _tokens(ctx: Context, row: Any) -> list[str]:  # noqa: ANN401 - a row
    settings = ctx.settings if isinstance(ctx.settings, SecretsSettings) else SecretsSettings()
    stored = Stored(row["destination_config"], row["destination_secrets"])
    try:
        text = unseal(stored, SecretBox.of(settings.secrets_keys), row["id"])
    except Unreadable as fault:
        raise Reject("SECRETS_UNREADABLE", "The route cannot be read now.", status=503) from fault
    destination = PollDestination.model_validate_json(text)
    now = datetime.now(UTC)
    older = [one.secret for one in destination.previous_secrets if one.until > now]
    return [secret.get_secret_value() for secret in (destination.secret, *older)]


async def _pull(ctx: Context, durable: str, wanted: Poll) -> list[Message]:
    return await ctx.pull(
        STREAM,
        durable,
        messages=wanted.limit,
        size_bytes=MAX_ANSWER_BYTES,
        wait_s=wanted.wait_s,
    )


async def _place(ctx: Context, wanted: Poll | Seek, start: dict[str, Any]) -> int:
    """Make a reader's consumer at a place; return its generation.

    Raises:
        Reject: `TOO_MANY_READERS`.
        Unavailable: JetStream does not answer.
    """
    generation: int | None = await ctx.postgres.fetchval(
        _QUERIES["add_reader"], wanted.route_id, wanted.consumer, MAX_READERS
    )
    if generation is None:
        text = f"A route has at most {MAX_READERS} readers; forget one."
        raise Reject("TOO_MANY_READERS", text, status=409)
    durable = durable_of(wanted.route_id, wanted.consumer, generation)
    config = {
        "durable_name": durable,
        "description": "a reader of a polled route",
        "filter_subject": f"polled.{wanted.tenant_id}.{wanted.route_id}",
        # A cursor confirms the last job, and with it all before.
        "ack_policy": "all",
        "ack_wait": ACK_WAIT_S * _NS,
        "max_ack_pending": MAX_PENDING,
        "max_waiting": 8,
        "inactive_threshold": KEPT_S * _NS,
        **start,
    }
    await _api(
        ctx,
        f"CONSUMER.DURABLE.CREATE.{STREAM}.{durable}",
        {"stream_name": STREAM, "config": config},
    )
    if generation > 1:
        await _delete(ctx, durable_of(wanted.route_id, wanted.consumer, generation - 1))
    return generation


async def _confirm(ctx: Context, durable: str, cursor: str) -> None:
    """Acknowledge the jobs of an answer.

    Raises:
        Reject: `CURSOR_INVALID`, or `CURSOR_GONE` after a `seek`.
    """
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii")
    except (binascii.Error, ValueError):
        text = ""
    generation, _, place = text.partition("/")
    if not _CURSOR.fullmatch(place):
        raise Reject("CURSOR_INVALID", "ack is not the cursor of an answer.")
    if generation != durable.rpartition("-")[2]:
        raise _gone()
    tokens = place.split(".")
    prefix, tail = (tokens[:2], tokens[2:]) if not tokens[0].isdigit() else ([], tokens)
    subject = ".".join(["$JS", "ACK", *prefix, STREAM, durable, *tail])
    try:
        await ctx.request(subject, b"+ACK", timeout_s=2.0)
    except NoAnswer as silence:
        if silence.reason == "no responders":
            raise _gone() from None
        raise


def _cursor_of(reply: str, durable: str) -> str:
    tokens = reply.split(".")
    prefix = [] if len(tokens) == _TOKENS_V1 else tokens[2:4]
    tail = tokens[4:] if len(tokens) == _TOKENS_V1 else tokens[6:]
    text = f"{durable.rpartition('-')[2]}/{'.'.join([*prefix, *tail])}"
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _gone() -> Reject:
    text = "The reader was moved since this answer; go on without ack."
    return Reject("CURSOR_GONE", text, status=409)


def _job(message: Message) -> PolledJob:
    return PolledJob(
        sequence=message.sequence,
        # Rounded down: a seek to this time finds the job.
        stored_at=datetime.fromtimestamp(message.stored_at_ns // 1000 / 1_000_000, tz=UTC),
        attempt=message.attempt,
        body=orjson.loads(message.data),
    )


async def _list_durables(ctx: Context) -> set[str]:
    found: set[str] = set()
    while True:
        page = await _api(ctx, f"CONSUMER.NAMES.{STREAM}", {"offset": len(found)})
        names = page.get("consumers") or []
        found.update(name for name in names)
        if not names or len(found) >= page.get("total", 0):
            return {name for name in found if name.startswith("poll-")}
        await asyncio.sleep(0)


async def _exists(ctx: Context, durable: str) -> bool:
    """Whether the server has a reader's consumer.

    One that has no leader answers nothing, while a cluster elects one. A reader that was then
    placed anew would get all jobs again.
    """
    try:
        await _api(ctx, f"CONSUMER.INFO.{STREAM}.{durable}", None)
    except RequestFailed as refusal:
        if refusal.code != _NOT_FOUND:
            raise
        return False
    return True


async def _delete(ctx: Context, durable: str) -> None:
    try:
        await _api(ctx, f"CONSUMER.DELETE.{STREAM}.{durable}", None)
    except RequestFailed:
        ctx.log.debug("a reader's consumer was gone already", consumer=durable)


async def _api(ctx: Context, subject: str, payload: dict[str, Any] | None) -> dict[str, Any]:
    data = b"" if payload is None else orjson.dumps(payload)
    answer = await ctx.request(f"$JS.API.{subject}", data)
    told: dict[str, Any] = orjson.loads(answer.data)
    if error := told.get("error"):
        raise RequestFailed(subject, int(error.get("code", 500)), error.get("description", ""))
    return told
