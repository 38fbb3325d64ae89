"""Calls functions of the message queues as the host does, on real servers."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import orjson
import structlog

from functions.messages.contents import QUEUES, OutMessage, QueuedSms
from functions.messages.delivery import Policy, Sender, deliver_message
from functions.messages.provider import Admission, Receipt
from functions.messages.store import MessageStore
from runtime import Context, Event, Message, manifest
from runtime.broker.connection import ApiError, Broker
from runtime.broker.streams import ensure
from runtime.context import Scope
from runtime.resource.postgres import open_pool
from tests.support.documentation import ROOT

TENANT = "acme"
SMS: dict[str, Any] = {"to": "+436641234567", "body": "Your code is 1234"}
MANIFEST = ROOT / "manifests" / "messaging.yaml"
SMALL = {"SMS_MAX_BYTES": "10MB", "EMAIL_MAX_BYTES": "10MB", "WEBHOOKS_MAX_BYTES": "10MB"}


Handle = Callable[[Event[Any], Context[Any], Sender], Awaitable[None]]


@dataclass
class ScriptedProvider:
    """A provider whose results a test decides; the last one is repeated."""

    results: list[Receipt | BaseException | Callable[[], Any]] = field(default_factory=list)
    repeats_are_safe: bool = False
    check_sent_after_s: float | None = None
    look_up_after_s: float | None = None
    admission: Admission = field(default_factory=lambda: Admission("test-account"))
    sent: list[OutMessage] = field(default_factory=list)

    async def admit(self, message: OutMessage) -> Admission:
        return self.admission

    async def send(self, message: OutMessage, account: str) -> Receipt:
        self.sent.append(message)
        found = self.results.pop(0) if len(self.results) > 1 else self.results[0]
        if isinstance(found, BaseException):
            raise found
        return found if isinstance(found, Receipt) else await found()


@dataclass
class Worker:
    """A function that sends text messages, with a scripted provider."""

    pool: "asyncpg.Pool[asyncpg.Record]"
    broker: Broker
    scope: Scope
    provider: ScriptedProvider
    sender: Sender

    @property
    def context(self) -> Context[Any]:
        return Context(self.scope)

    async def deliver(
        self,
        sequence: int = 1,
        *,
        attempt: int = 1,
        handle: Handle = deliver_message,
        **fields: Any,
    ) -> None:
        """Call the function once with a message of the queue."""
        body = SMS | {"tenant_id": TENANT} | fields
        message = Message(
            "sms.send",
            orjson.dumps(body),
            stream="SMS",
            sequence=sequence,
            attempt=attempt,
            stored_at_ns=1_700_000_000_000_000_000 + sequence,
        )
        context: Context[Any] = Context(self.scope, message, attempt=attempt)
        await handle(Event(message, QueuedSms.model_validate(body)), context, self.sender)

    async def row(self, message_id: str = "m1") -> dict[str, Any]:
        """The row of a message."""
        row = await self.pool.fetchrow("SELECT * FROM messages WHERE message_id = $1", message_id)
        assert row is not None
        return dict(row)

    async def attempts(self) -> list[dict[str, Any]]:
        """All attempts."""
        rows = await self.pool.fetch("SELECT * FROM message_attempts ORDER BY message_id, attempt")
        return [dict(row) for row in rows]

    async def lose_lease(self) -> None:
        """Let the leases of all attempts end."""
        await self.pool.execute("UPDATE messages SET lease_until = now() - interval '1 s'")

    async def told(self, kind: str = "sms") -> list[dict[str, Any]]:
        """What stands on the status subject, in the order of the stream."""
        queue = QUEUES[kind]  # type: ignore[index] # a literal of tests
        return [
            orjson.loads(data) for data in await stored(self.broker, queue.stream, queue.status)
        ]


async def stored(broker: Broker, stream: str, subject: str) -> list[bytes]:
    """The payloads of a subject, in the order of the stream."""
    found: list[bytes] = []
    sequence = 1
    while True:
        request = {"next_by_subj": subject, "seq": sequence}
        reply = await broker.request(
            f"$JS.API.DIRECT.GET.{stream}", orjson.dumps(request), timeout_s=5
        )
        if "Nats-Sequence" not in reply.headers:
            return found
        found.append(reply.data)
        sequence = int(reply.headers["Nats-Sequence"]) + 1


async def make_streams(broker: Broker) -> None:
    """The shipped streams of the queues, empty."""
    declared = manifest.read([MANIFEST], SMALL)
    for queue in QUEUES.values():
        # Deleted and not emptied: an empty stream still knows the ids of its messages.
        with contextlib.suppress(ApiError):
            await broker.api(f"STREAM.DELETE.{queue.stream}")
    await ensure(broker, declared)


@asynccontextmanager
async def running_worker(broker: Broker, dsn: str) -> AsyncIterator[Worker]:
    """A worker on empty streams and a new database, with one registered tenant."""
    await make_streams(broker)
    pool = await open_pool(dsn, max_size=4)
    await pool.execute("INSERT INTO tenants (tenant_id) VALUES ($1), ('other')", TENANT)
    scope = Scope("send_sms", None, broker, {"postgres": pool}, structlog.get_logger())
    provider = ScriptedProvider()
    sender = Sender(MessageStore(pool), provider, Policy())
    scope.state = sender
    yield Worker(pool, broker, scope, provider, sender)
    await sender.store.close()
    await pool.close()
