"""NATS micro services (ADR-32): discovery, and endpoints that handle requests concurrently.

The client library's own services answer one request at a time, lose requests when they stop and
send an exception's text to the caller; hence this module.
"""

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable

from runtime.broker.connection import Broker
from runtime.broker.micro_protocol import (
    VERBS,
    Answer,
    EndpointStats,
    Live,
    MicroEndpoint,
    ServiceIdentity,
    Verb,
    describe,
    is_request,
)
from runtime.broker.subscription import Subscription
from runtime.call.call_task import create_call_task
from runtime.errors import ConfigError, Problem, PublishFailed, TooLarge, Unavailable, Unsendable
from runtime.message import Message
from runtime.observe.logs import get_logger

__all__ = ["Answer", "EndpointStats", "MicroEndpoint", "MicroService"]

log = get_logger("runtime.broker.micro")

BUSY = Answer.failure(429, "TOO_MANY_REQUESTS", "the endpoint is busy; try again shortly")
STOPPING = Answer.failure(503, "STOPPING", "the service is stopping; try again")
TOO_LARGE = Answer.failure(500, "ANSWER_TOO_LARGE", "the answer is too large to be sent")
UNREADABLE = Answer.failure(400, "MESSAGE_UNREADABLE", "the request is not a valid NATS message")
UNSENDABLE = Answer.failure(500, "ANSWER_NOT_SENT", "the answer could not be sent")
CANCEL_TIMEOUT_S = 1.0


class MicroService:
    """One instance of a service, with an id of its own.

    Args:
        broker: the connection.
        name: letters, digits, `_` and `-`.
        version: a semantic version.
        description: one sentence for `nats micro ls`, or a function that returns it.
        metadata: values become strings.
        endpoints: the endpoints at the start; `add_endpoint` adds more.
        prefix: the first part of the discovery subjects.

    Raises:
        ConfigError: a name or the version cannot be used.
    """

    def __init__(
        self,
        broker: Broker,
        name: str,
        version: str,
        description: str | Callable[[], str] = "",
        metadata: Live | None = None,
        *,
        endpoints: Iterable[MicroEndpoint] = (),
        prefix: str = "$SRV",
    ) -> None:
        self._broker = broker
        self._identity = ServiceIdentity(name, version, description, metadata or {})
        self._prefix = prefix
        self._endpoints: dict[str, MicroEndpoint] = {}
        self._listeners: dict[str, _Listener] = {}
        self._monitoring: list[Subscription] = []
        self._started = False
        for endpoint in endpoints:
            self._register(endpoint)

    @property
    def id(self) -> str:
        """This instance's id, new at each start."""
        return self._identity.id

    @property
    def endpoint_names(self) -> frozenset[str]:
        """The names of the endpoints."""
        return frozenset(self._endpoints)

    def endpoint(self, name: str) -> MicroEndpoint:
        """The endpoint of this name.

        Raises:
            KeyError: there is none.
        """
        return self._endpoints[name]

    async def start(self) -> None:
        """Subscribe; when this returns, the server has processed every subscription.

        Raises:
            Unavailable: the connection is gone. No subscription is left.
        """
        self._started = True
        try:
            # Endpoints first: a client that discovers one can call it.
            for endpoint in self._endpoints.values():
                await self._listen(endpoint)
            for verb in VERBS:
                await self._answer_verb(verb)
            await self._reach_server()
        except Unavailable:
            await self.stop(grace_s=0)
            raise

    async def stop(self, grace_s: float = 30.0) -> None:
        """Stop taking requests, and answer all requests that have arrived.

        Discovery ends first. Requests that are not done after `grace_s` are cancelled; the callers
        of cancelled and waiting requests get 503.
        """
        for subscription in self._monitoring:
            await subscription.unsubscribe()
        self._monitoring.clear()
        await asyncio.gather(*(self.remove_endpoint(name, grace_s) for name in [*self._endpoints]))
        try:
            await self._reach_server()
        except Unavailable:
            log.warning("A service stopped without a connection", service=self._identity.name)
        self._started = False

    async def add_endpoint(self, endpoint: MicroEndpoint) -> None:
        """Add an endpoint to discovery and, unless it is virtual, subscribe for it.

        Raises:
            ConfigError: there is an endpoint of this name.
            Unavailable: the connection is gone.
        """
        self._register(endpoint)
        if self._started:
            await self._listen(endpoint)
            await self._reach_server()

    async def replace_endpoint(self, endpoint: MicroEndpoint, grace_s: float = 30.0) -> None:
        """Let an endpoint take the place of the one of its name.

        With the same subject and queue group no request is missed. With another subject the new one
        answers before the old one ends. With another queue group the old one ends first: otherwise
        a request would be handled by both.

        Raises:
            Unavailable: the connection is gone.
        """
        old, listener = self._endpoints[endpoint.name], self._listeners.get(endpoint.name)
        self._endpoints[endpoint.name] = endpoint
        if listener is None or not self._started:
            return
        if old.subject != endpoint.subject:
            await self._listen(endpoint)
            await self._reach_server()
            await listener.stop(grace_s)
        elif old.queue_group != endpoint.queue_group:
            await listener.stop(grace_s)
            await self._listen(endpoint)
            await self._reach_server()
        elif endpoint.handle is not None:
            listener.follow(endpoint, endpoint.handle)

    async def remove_endpoint(self, name: str, grace_s: float = 30.0) -> None:
        """Stop one endpoint as `stop` does; nothing happens when it does not exist."""
        listener = self._listeners.pop(name, None)
        self._endpoints.pop(name, None)
        if listener is not None:
            await listener.stop(grace_s)

    async def _reach_server(self) -> None:
        """Return when the server has read everything that was sent so far.

        nats-py 2.16 writes a flush's PING ahead of the commands in its buffer, so the first PONG
        proves nothing (`no responders` once in 150 starts). By the first PONG the buffer is sent,
        so the second PONG proves it.
        """
        await self._broker.flush()
        await self._broker.flush()

    def _register(self, endpoint: MicroEndpoint) -> None:
        if endpoint.name in self._endpoints:
            where = f"service {self._identity.name}"
            wrong = f"there are two endpoints named {endpoint.name!r}"
            raise ConfigError([Problem(where, "endpoints", wrong, "rename one of them")])
        self._endpoints[endpoint.name] = endpoint

    async def _listen(self, endpoint: MicroEndpoint) -> None:
        if endpoint.handle is not None:
            listener = _Listener(self._broker, self._identity.name, endpoint, endpoint.handle)
            self._listeners[endpoint.name] = listener
            await listener.start()

    async def _answer_verb(self, verb: Verb) -> None:
        async def answer(message: Message) -> None:
            if not is_request(message):
                return
            data = describe(verb, self._identity, list(self._endpoints.values()))
            try:
                await self._broker.respond(message, data)
            except (PublishFailed, Unsendable) as failure:
                log.warning(
                    "A service could not describe itself",
                    service=self._identity.name,
                    verb=verb,
                    size_bytes=len(data),
                    reason=failure.reason,
                )

        everyone = f"{self._prefix}.{verb}"
        kind = f"{everyone}.{self._identity.name}"
        for subject in (everyone, kind, f"{kind}.{self._identity.id}"):
            self._monitoring.append(await self._broker.subscribe(subject, answer))


class _Listener:
    """Worker pool of one endpoint: at most `concurrency` requests are handled at once.

    A worker is a task that is kept between requests. A worker is started when all others are busy,
    so a request costs a queue entry and no new task.
    """

    def __init__(
        self,
        broker: Broker,
        service: str,
        endpoint: MicroEndpoint,
        handle: Callable[[Message], Awaitable[Answer]],
    ) -> None:
        self._broker = broker
        self._endpoint = endpoint
        self._handle = handle
        self._counters = endpoint.counters
        self._log = log.bind(service=service, endpoint=endpoint.name)
        self._waiting: deque[Message] = deque()
        self._idle: list[asyncio.Future[Message]] = []
        self._workers: set[asyncio.Task[None]] = set()
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._stopped = False
        self._subscription: Subscription | None = None

    async def start(self) -> None:
        endpoint = self._endpoint
        self._subscription = await self._broker.subscribe(
            endpoint.subject, self._receive, queue=endpoint.queue_group or ""
        )

    def follow(
        self, endpoint: MicroEndpoint, handle: Callable[[Message], Awaitable[Answer]]
    ) -> None:
        """Handle requests as another endpoint of the same subject and queue group says."""
        self._endpoint, self._handle = endpoint, handle
        self._counters = endpoint.counters
        for _ in range(min(len(self._idle), len(self._workers) - endpoint.concurrency)):
            self._idle.pop().cancel()  # Ends the worker that waits for it.

    async def stop(self, grace_s: float) -> None:
        loop = asyncio.get_running_loop()
        end_s = loop.time() + grace_s
        if self._subscription is not None:
            await self._subscription.drain(max(grace_s, CANCEL_TIMEOUT_S))
        try:
            async with asyncio.timeout_at(end_s):
                await self._quiet.wait()
        except TimeoutError:
            self._log.warning(
                "Requests were cancelled at the end of the grace period",
                waiting=len(self._waiting),
                in_flight=len(self._workers) - len(self._idle),
            )
        self._stopped = True
        while self._waiting:
            await self._refuse(self._waiting.popleft(), STOPPING)
        for worker in self._workers:
            worker.cancel()
        if self._workers:
            await asyncio.wait(self._workers, timeout=CANCEL_TIMEOUT_S)

    async def _receive(self, message: Message) -> None:
        if not is_request(message):
            self._log.debug("A message that is not a request was dropped", reply=message.reply)
            self._counters.record(0)
            self._counters.record_error("400:NOT_A_REQUEST")
            return
        if self._stopped:
            await self._refuse(message, STOPPING)
            return
        if message.unreadable is not None:
            await self._refuse(message, UNREADABLE)
            return
        if self._idle:
            self._idle.pop().set_result(message)
        elif len(self._workers) < self._endpoint.concurrency:
            worker = create_call_task(self._work(message), name=f"endpoint {self._endpoint.name}")
            self._workers.add(worker)
            worker.add_done_callback(self._on_worker_ended)
        elif len(self._waiting) < self._endpoint.max_waiting:
            self._waiting.append(message)
        else:
            await self._refuse(message, BUSY)
            return
        self._quiet.clear()

    async def _work(self, message: Message) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._serve(message)
            if len(self._workers) > self._endpoint.concurrency and (own := asyncio.current_task()):
                self._workers.discard(own)  # The endpoint's concurrency was lowered meanwhile.
                return
            if self._waiting:
                message = self._waiting.popleft()
                # A handler that never awaits must not hold the loop until the queue is empty.
                await asyncio.sleep(0)
                continue
            handed: asyncio.Future[Message] = loop.create_future()
            self._idle.append(handed)
            if len(self._idle) == len(self._workers):
                self._quiet.set()
            message = await handed

    def _on_worker_ended(self, worker: "asyncio.Task[None]") -> None:
        self._workers.discard(worker)
        if len(self._idle) == len(self._workers):
            self._quiet.set()

    async def _serve(self, message: Message) -> None:
        begun_ns = time.perf_counter_ns()
        try:
            answer = await self._handle(message)
            headers = answer.wire_headers()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                await self._refuse(message, STOPPING)
                raise
            # This worker was not cancelled: something that the handler awaited was.
            answer = self._failure("The handler of an endpoint was cancelled from within")
            headers = answer.wire_headers()
        except Exception:  # noqa: BLE001 - whatever it is, the caller gets an answer
            answer = self._failure("The handler of an endpoint raised")
            headers = answer.wire_headers()
        self._counters.record(time.perf_counter_ns() - begun_ns)
        await self._respond(message, answer, headers)

    def _failure(self, sentence: str) -> Answer:
        event_id = secrets.token_hex(8)
        self._log.error(sentence, event_id=event_id, exc_info=True)
        return Answer.failure(500, "INTERNAL_ERROR", "the endpoint failed", event_id)

    async def _refuse(self, message: Message, answer: Answer) -> None:
        self._counters.record(0)
        await self._respond(message, answer, answer.wire_headers())

    async def _respond(
        self, message: Message, answer: Answer, headers: dict[str, str] | None
    ) -> None:
        try:
            await self._broker.respond(message, answer.data, headers)
        except (PublishFailed, Unsendable) as failure:
            tell = self._log.error if isinstance(failure, TooLarge) else self._log.warning
            tell("An answer could not be sent", reason=failure.reason)
            if answer not in (TOO_LARGE, UNSENDABLE):
                # The caller should not wait until its timeout.
                instead = TOO_LARGE if isinstance(failure, TooLarge) else UNSENDABLE
                await self._respond(message, instead, instead.wire_headers())
                return
        if answer.error is not None:
            status, code = answer.error
            self._counters.record_error(f"{status}:{code}")
