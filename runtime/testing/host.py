"""Runs the functions of a manifest inside a test: in memory, or on a real server."""

import inspect
import sys
from collections import Counter
from collections.abc import Collection, Coroutine, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

import structlog

from runtime.broker import stored
from runtime.broker.connection import Broker
from runtime.broker.dead_letters import DeadLetter, DeadLetters, Selection
from runtime.broker.stream_configs import DEAD_LETTERS, MAILBOX, SCHEDULES, tick_consumer
from runtime.call.call_task import CallTask, current_call
from runtime.context import PubAck, Reply
from runtime.errors import PublishFailed
from runtime.host import Addresses, Host, HostOptions
from runtime.loader import Function, load_all
from runtime.loader.payload import encode
from runtime.manifest.model import FunctionSpec
from runtime.manifest.values import parse_duration
from runtime.observe.metrics import Metrics
from runtime.resource.postgres import migrate
from runtime.testing.assertions import Assertions
from runtime.testing.backends import Backend, InMemory, RealServer
from runtime.testing.errors import NotAwaited, TestKitError
from runtime.testing.instrumentation import configure_logs, counted, recorded_start
from runtime.testing.journal import Journal
from runtime.testing.observed_settlement import ObservedSettlement
from runtime.testing.recorded import Case
from runtime.testing.selection import Source, check_postgres, read_sources, select
from runtime.user_frames import place_of

T = TypeVar("T")

_START_LIMIT_S = 120.0
_SLACK_S = 60.0
_NOT_BEGUN = "this TestHost has not begun: use it as `async with TestHost(…) as host:`"
_ENDED = "this TestHost has ended: use it inside its `async with` block"
_INSIDE = (
    "host.{} was called by a function that the host calls; a function uses its ctx, and the test "
    "uses the host"
)


class TestHost(Assertions):
    """A host for tests of functions.

    The functions run as on a server: the same dispatcher, binding, settlement and retries. In
    memory the clock stands still until the test moves it, and nothing really waits; a time limit
    or a batch's wait passes by itself in `settled`. Retries have no jitter.

    Args:
        sources: manifests: files, folders, or their content as a dictionary.
        only: names of the functions that run; all unless given.
        server: address of a real nats-server, or an object with such a `url`; in memory unless
            given. It should be the test's own: streams of other names stay as they are.
        database_url: PostgreSQL's address, for functions that use it; the manifest's migrations are
            applied to it.
        environment: for `${NAME}` in the manifests; the process's own unless given.
        services: whether service functions run too; they may open ports.
        now: the time when the host begins, in memory; the real time unless given.
        grace_s: how long functions may take to end when the block ends.

    Attributes:
        decisions: how each delivery was settled, oldest first.
        dead_letters: the dead letters of the host's functions; read by `settled` and `advance`.
    """

    __test__ = False  # Its name tells pytest to collect it.

    def __init__(
        self,
        *sources: Source,
        only: Collection[str] = (),
        server: Any = None,  # noqa: ANN401 - an address, or whatever has one
        database_url: str | None = None,
        environment: Mapping[str, str] | None = None,
        services: bool = False,
        now: datetime | None = None,
        grace_s: float = 5.0,
    ) -> None:
        manifest = read_sources(sources, environment, only)
        self._manifest = select(manifest, only, services=services)
        check_postgres(self._manifest, database_url)
        self._server_url = _url_of(server)
        self._database_url = database_url
        self._services = services
        self._now = now or datetime.now(UTC)
        self._grace_s = grace_s
        super().__init__(Journal())
        self._running: Counter[str] = Counter()
        self._functions: dict[str, Function] = {}
        self._backend: Backend | None = None
        self._host: Host | None = None
        self._broker: Broker | None = None
        self._first_letter = 0
        self._state = _NOT_BEGUN
        self._calls: list[tuple[str, Coroutine[Any, Any, Any], str]] = []

    async def __aenter__(self) -> Self:
        """Load and start the functions.

        Raises:
            ConfigError: the manifest or a function must be changed.
            TestKitError: the host is used twice, or inside a function.
        """
        if self._state is not _NOT_BEGUN:
            raise TestKitError("this TestHost was used before: make a new one for each test")
        self._refuse_calls_of_functions("__aenter__")
        if not structlog.is_configured():
            configure_logs()
        self._functions = self._watched(load_all(self._manifest))
        url = self._server_url
        backend = self._backend = InMemory(self._now) if url is None else RealServer(url)
        self._journal.begin(self._functions, backend.time_s)
        options = HostOptions(
            services=self._services,
            settlement=partial(ObservedSettlement, observer=self._journal.observe),
        )
        addresses = Addresses(backend.url, self._database_url)
        self._host = Host(self._manifest, self._functions, addresses, Metrics("test"), options)
        try:
            await backend.run(self._start(self._host, backend.url), _START_LIMIT_S)
        except BaseException:
            if self._broker is not None:
                await self._broker.close()
            backend.close()
            raise
        self._state = ""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Drain and stop the functions.

        Raises:
            NotAwaited: the test has called a method without `await`.
        """
        self._state = _ENDED
        host, backend, broker = self._host, self._backend, self._broker
        if host is None or backend is None or broker is None:
            raise TestKitError(_NOT_BEGUN)
        try:
            limit_s = self._grace_s + _SLACK_S
            await backend.run(host.drain(self._grace_s), limit_s)
            await backend.run(broker.close(), limit_s)
        finally:
            backend.close()
            left = self._not_awaited()
        if left and error is None:
            raise NotAwaited(left)

    @property
    def now(self) -> datetime:
        """The server's time, aware UTC."""
        return self._own_backend.now()

    def publish(
        self,
        subject: str | Case,
        data: Any = b"",  # noqa: ANN401 - bytes, or what becomes JSON
        *,
        headers: Mapping[str, str] | None = None,
        msg_id: str | None = None,
    ) -> Coroutine[Any, Any, PubAck]:
        """Store a message in the stream that has the subject; bytes as they are, others as JSON.

        A `Case` instead of a subject is published with its own subject, payload and headers.

        Raises:
            TestKitError: no stream has the subject.
            PublishFailed: the stream refused the message.
        """
        if isinstance(subject, Case):
            message = subject.message
            subject, data = message.subject, message.data
            headers = {**message.headers, **(headers or {})}
        return self._begin("publish", self._publish(subject, encode(data), headers, msg_id))

    def request(
        self,
        subject: str,
        data: Any = b"",  # noqa: ANN401 - bytes, or what becomes JSON
        *,
        headers: Mapping[str, str] | None = None,
        timeout: str | float = "30s",
    ) -> Coroutine[Any, Any, Reply]:
        """Call an endpoint.

        Raises:
            RequestFailed: the endpoint answered with an error.
            NoAnswer: no endpoint has the subject, or none answered in time.
        """
        timeout_s = _seconds(timeout)
        work = self._run_request(subject, encode(data), headers, timeout_s)
        return self._begin("request", work)

    def settled(self) -> Coroutine[Any, Any, None]:
        """Wait until no function works, and no message waits for anything but its time.

        In memory the clock moves as far as running calls and batches need, and no further: a retry
        waits for `advance`. A call that hangs runs into its function's time limit.

        Raises:
            TestKitError: a function holds messages longer than its time limit explains.
        """
        return self._begin("settled", self._settle())

    def advance(self, span: str | float) -> Coroutine[Any, Any, None]:
        """Let time pass: `"5m"`, or seconds. Everything that becomes due happens, in order.

        On a real server it really passes.

        Raises:
            TestKitError: on a real server, when that would take too long.
        """
        return self._begin("advance", self._advance(_seconds(span)))

    @property
    def _own_backend(self) -> Backend:
        if self._backend is None or self._state:
            raise TestKitError(self._state or _NOT_BEGUN)
        return self._backend

    @property
    def _own_broker(self) -> Broker:
        if self._broker is None or self._state:
            raise TestKitError(self._state or _NOT_BEGUN)
        return self._broker

    async def _start(self, host: Host, url: str) -> None:
        self._broker = await Broker.connect(url, name="test")
        if self._database_url is not None and self._manifest.migrations:
            await migrate(self._database_url, list(self._manifest.migrations.values()))
        self._first_letter = await stored.last_sequence(self._broker, DEAD_LETTERS) + 1
        await host.start()

    def _begin(self, name: str, work: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
        """The coroutine that a public method returns; remembered, in case nobody awaits it."""
        try:
            _ = self._own_backend
            self._refuse_calls_of_functions(name)
        except TestKitError:
            work.close()
            raise
        frame = sys._getframe(2)  # noqa: SLF001 - there is no other way to the caller's line
        self._calls.append((name, work, place_of(frame.f_code.co_filename, frame.f_lineno)))
        return work

    def _not_awaited(self) -> str:
        left = [
            (name, work, place)
            for name, work, place in self._calls
            if inspect.getcoroutinestate(work) == inspect.CORO_CREATED
        ]
        for _, work, _ in left:
            work.close()
        return "; ".join(f"host.{name} at {place} was not awaited" for name, _, place in left)

    def _refuse_calls_of_functions(self, name: str) -> None:
        if isinstance(current_call(), CallTask):
            raise TestKitError(_INSIDE.format(name))

    async def _publish(
        self, subject: str, data: bytes, headers: Mapping[str, str] | None, msg_id: str | None
    ) -> PubAck:
        work = self._own_broker.publish(subject, data, headers=headers, msg_id=msg_id)
        try:
            return await self._own_backend.run(work, _START_LIMIT_S)
        except PublishFailed as failure:
            if failure.reason != "no stream took it":
                raise
            streams = (f"{name} {spec.subjects}" for name, spec in self._manifest.streams.items())
            known = ", ".join(streams) or "none"
            raise TestKitError(f"no stream has the subject {subject}; streams: {known}") from None

    async def _run_request(
        self, subject: str, data: bytes, headers: Mapping[str, str] | None, timeout_s: float
    ) -> Reply:
        work = self._own_broker.request(subject, data, timeout_s=timeout_s, headers=headers)
        return await self._own_backend.run(work, timeout_s + _SLACK_S)

    async def _advance(self, seconds: float) -> None:
        await self._own_backend.advance(seconds)
        await self._read_letters()

    async def _settle(self) -> None:
        specs = [function.spec for function in self._functions.values()]
        longest_s = max((spec.timeout + spec.batch.wait for spec in specs), default=0.0)
        if not await self._own_backend.until_idle(self._is_busy, longest_s + _SLACK_S):
            raise TestKitError(
                f"functions still hold messages after {longest_s + _SLACK_S:g} s: "
                f"{await self._unsettled()}\n{self._journal}"
            )
        await self._read_letters()

    async def _is_busy(self) -> bool:
        return any(self._running.values()) or bool(await self._unsettled())

    async def _unsettled(self) -> dict[str, int]:
        """The messages that functions hold, or are about to get."""
        found = {}
        for name, function in self._functions.items():
            spec = function.spec
            # A message that waits in an ordered function is held, and waits for its time.
            if spec.ordered_by is not None and not self._own_backend.is_real:
                continue
            waiting = self._journal.waiting(name)
            for stream, durable in _sources(name, spec):
                naked = sum(each == stream for each in waiting)
                unsettled = self._own_backend.unsettled
                if count := await unsettled(self._own_broker, stream, durable, naked):
                    found[name] = count
        return found

    async def _read_letters(self) -> None:
        self._journal.letters = await self._own_backend.run(self._list_letters(), _START_LIMIT_S)

    async def _list_letters(self) -> list[DeadLetter]:
        broker = self._own_broker
        found: list[DeadLetter] = []
        for name in self._functions:
            listed = DeadLetters(broker).list(Selection(function=name))
            found += [each async for each in listed if each.sequence >= self._first_letter]
        return sorted(found, key=lambda letter: letter.sequence)

    def _watched(self, functions: Mapping[str, Function]) -> dict[str, Function]:
        return {name: self._watch(function) for name, function in functions.items()}

    def _watch(self, function: Function) -> Function:
        """The function, with its calls counted, its effects recorded, and retries on time."""
        spec = function.spec
        # A test names delays, so they must not be random.
        spec = spec.model_copy(update={"retry": spec.retry.model_copy(update={"jitter": 0.0})})
        handler = counted(function, self._running)
        start = recorded_start(function, self._journal.sent)
        return replace(function, spec=spec, handler=handler, start=start)


def _sources(name: str, spec: FunctionSpec) -> list[tuple[str, str]]:
    """The consumers of a function."""
    if spec.consumer is not None:
        return [(spec.consumer.stream, spec.consumer.durable_of(name)), (MAILBOX, name)]
    if spec.schedule is not None:
        return [(SCHEDULES, tick_consumer(name)), (MAILBOX, name)]
    return []


def _url_of(server: Any) -> str | None:  # noqa: ANN401 - an address, or whatever has one
    if server is None or isinstance(server, str):
        return server
    url = getattr(server, "url", None)
    if not isinstance(url, str):
        raise TestKitError(
            f"server is a {type(server).__name__}, which has no url; give an address"
        )
    return url


def _seconds(span: str | float) -> float:
    if isinstance(span, int | float):
        return float(span)
    try:
        return parse_duration(span)
    except ValueError as failure:
        raise TestKitError(str(failure)) from None


__all__ = ["TestHost"]
