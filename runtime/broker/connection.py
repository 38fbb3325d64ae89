"""One connection to NATS: confirmed publishing, requests, subscriptions, JetStream API."""

import asyncio
import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import nats.errors

from runtime.broker.answers import MOST_BYTES, Answers
from runtime.broker.client import PENDING_BYTES, RECONNECT_WAIT_S, OrderedClient
from runtime.broker.confirmations import AwaitedPubAck, Confirmations, PublishRefused
from runtime.broker.pull_once import PullOnce
from runtime.broker.subscription import Callback, Subscription
from runtime.context import PubAck, Publication, Reply
from runtime.errors import (
    ConfigError,
    NoAnswer,
    Problem,
    PublishFailed,
    RequestFailed,
    RuntimeFault,
    Unavailable,
)
from runtime.message import Message
from runtime.observe.logs import get_logger
from runtime.subjects import HOST_INBOX

log = get_logger("runtime.broker")

_Item = tuple[str, bytes, str | None, Mapping[str, str] | None]

ACK_TIMEOUT_S = 5.0
API_TIMEOUT_S = 5.0
OFFER_AGAIN_S = (0.1, 0.25, 0.5)
"""Pauses before a publish that no stream took is tried again: a stream accepts nothing while its
leader changes, which takes about that long. After a killed leader it takes seconds: then the caller
tries again."""
_HOLDS_DUPLICATE = 10201
PING_INTERVAL_S = 5
CLOSE_LIMIT_S = 2
_SLICES = 10
"""Parts in which answers are waited for: a loop that was blocked loses one part, not all."""
_SECONDS = re.compile(r"[0-9]{1,9}", re.ASCII)
_SUBSCRIPTION_REFUSED = "permissions violation for subscription"


class ApiError(RuntimeFault):
    """JetStream refused an API request.

    Attributes:
        code: HTTP status, such as 404.
        err_code: JetStream's own number. Source: nats-server `server/errors.json`.
    """

    def __init__(self, code: int, err_code: int, description: str) -> None:
        self.code = code
        self.err_code = err_code
        self.description = description
        super().__init__(f"JetStream answered {code} ({err_code}): {description}")


class Broker:
    """A connection that reconnects until `close`, with the NATS operations that other layers need.

    Implements `runtime.context.BrokerPort`.

    Attributes:
        reconnects: how often the connection was lost and made again.
        api_timeout_s: how long `api` waits for an answer.
    """

    def __init__(self, client: OrderedClient) -> None:
        self._client = client
        self._confirmations = Confirmations()
        self._reconnect_callbacks: list[Callable[[], None]] = []
        self._ended = asyncio.Event()
        self._closing = False
        self.reconnects = 0
        self.api_timeout_s = API_TIMEOUT_S

    @classmethod
    async def connect(cls, url: str, *, name: str, timeout_s: float = 10.0) -> Self:
        """Connect, and reconnect after every loss until `close`.

        Args:
            url: one URL or several separated by commas; may have user and password.
            name: the client name that the server's monitoring shows.
            timeout_s: for the first connection; after a later loss, reconnecting has no limit.

        Raises:
            ConfigError: the server does not let this user subscribe to answers.
            Unavailable: no server answered in time, or the server refused the connection.
        """
        client = OrderedClient()
        broker = cls(client)
        refusals: list[str] = []

        async def on_error(error: Exception) -> None:
            # The text of a refusal is the server's.
            says = str(error).removeprefix("nats: ") if type(error) is nats.errors.Error else ""
            refusals.append(says or type(error).__name__)
            log.debug("NATS connection error", error=type(error).__name__)

        try:
            async with asyncio.timeout(timeout_s):
                await client.connect(
                    servers=[part.strip() for part in url.split(",")],
                    name=name,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=RECONNECT_WAIT_S,  # type: ignore[arg-type]
                    connect_timeout=2,
                    ping_interval=PING_INTERVAL_S,
                    max_outstanding_pings=2,
                    pending_size=PENDING_BYTES,
                    # `outgoing` checks more than the library does.
                    skip_subject_validation=True,
                    error_cb=on_error,
                    reconnected_cb=broker._on_reconnect,
                    disconnected_cb=broker._on_disconnect,
                    closed_cb=broker._on_closed,
                )
                confirmations = broker._confirmations
                await client.listen(f"{confirmations.inbox}.*", confirmations.receive)
                await client.flush()
            if _SUBSCRIPTION_REFUSED in str(client.last_error).lower():
                raise ConfigError([_not_for_this_user(url)])  # noqa: TRY301 - closed below
        except (TimeoutError, OSError, nats.errors.Error) as failure:
            await client.close()
            reason = refusals[-1] if refusals else type(failure).__name__
            # Text before an @ is a secret, whatever its form.
            place = url.rpartition("@")[2]
            raise Unavailable(
                f"NATS at {place}", f"no connection within {timeout_s:g} s ({reason})"
            ) from failure
        except BaseException:
            await client.close()
            raise
        return broker

    @property
    def is_connected(self) -> bool:
        """Whether the client is connected at this moment."""
        return self._client.is_connected

    @property
    def has_ended(self) -> bool:
        """Whether the connection has closed for good without a call of `close`."""
        return self._ended.is_set()

    async def wait_until_ended(self) -> None:
        """Return when the connection has closed for good without a call of `close`."""
        await self._ended.wait()

    @property
    def server_version(self) -> tuple[int, int, int]:
        """The connected server's version, such as (2, 12, 0)."""
        version = self._client.connected_server_version
        return (version.major, version.minor, version.patch)

    @property
    def max_payload_bytes(self) -> int:
        """The largest message that the server accepts."""
        return self._client.max_payload

    def on_reconnect(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` after each reconnect; the returned function ends that."""
        self._reconnect_callbacks.append(callback)
        return lambda: self._reconnect_callbacks.remove(callback)

    async def close(self) -> None:
        """Send the waiting bytes, within `CLOSE_LIMIT_S`, and close the connection."""
        self._closing = True
        try:
            if self._client.is_connected:
                async with asyncio.timeout(CLOSE_LIMIT_S):
                    await self._client.flush(timeout=CLOSE_LIMIT_S)
        except (TimeoutError, nats.errors.Error):
            log.debug("NATS connection closed with bytes unsent")
        self._client.drop_unsent()
        await self._client.close()

    async def flush(self, timeout_s: float = 5.0) -> None:
        """Wait until the server has read everything sent so far.

        Raises:
            Unavailable: the server did not answer in time.
        """
        try:
            await self._client.flush(timeout=timeout_s)
        except (TimeoutError, nats.errors.Error) as failure:
            raise Unavailable("NATS", type(failure).__name__) from failure

    @property
    def refused_for_space_s(self) -> float:
        """Seconds since JetStream last had no room to store a message; infinite for never."""
        now_s = asyncio.get_running_loop().time()
        return now_s - self._confirmations.refused_for_space_at_s

    async def ping(self, timeout_s: float = 2.0) -> None:
        """Check that JetStream answers.

        Raises:
            Unavailable: JetStream did not answer in time.
        """
        await self.api("INFO", timeout_s=timeout_s)

    async def api(
        self,
        subject: str,
        payload: Mapping[str, Any] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> dict[str, Any]:
        """Send a request to the JetStream API; `subject` is the part after `$JS.API.`.

        Args:
            subject: of the request.
            payload: written as JSON; None for an empty request.
            timeout_s: how long to wait for the answer; `api_timeout_s` without it.

        Raises:
            ApiError: JetStream refused the request.
            Unavailable: no answer.
            Unsendable: a name in the subject is not valid, or the payload is too large.
        """
        data = json.dumps(payload).encode() if payload is not None else b""
        try:
            limit_s = self.api_timeout_s if timeout_s is None else timeout_s
            answer = await self._client.ask(f"$JS.API.{subject}", data, limit_s)
            document: dict[str, Any] = json.loads(answer.data)
        except (TimeoutError, nats.errors.Error) as failure:
            raise Unavailable("JetStream", type(failure).__name__) from failure
        except ValueError as failure:
            raise Unavailable("JetStream", "the answer is not JSON") from failure
        if error := document.get("error"):
            raise ApiError(
                error.get("code", 500), error.get("err_code", 0), error.get("description", "")
            )
        return document

    async def send(self, subject: str, data: bytes, reply: str = "") -> None:
        """Publish without confirmation, for pull requests.

        Raises:
            Unavailable: the connection is gone and its buffer is full.
            Unsendable: the server would not accept the message.
        """
        try:
            await self._client.publish(subject, data, reply)
        except nats.errors.Error as failure:
            raise Unavailable("NATS", type(failure).__name__) from failure

    def keep_alive(self, messages: Sequence[tuple[str, bytes]]) -> None:
        """Keep the connection alive while the event loop is blocked; called by another thread.

        Reads what the server sends, answers its PINGs, and sends these subjects and payloads.
        Nothing happens while there is no connection.
        """
        self._client.keep_alive(messages)

    async def send_all(self, messages: Sequence[tuple[str, bytes]]) -> None:
        """Publish many subjects and payloads together without confirmation, for settlements.

        A message that the server would not accept is logged and not sent; the others are.

        Raises:
            Unavailable: the connection is gone and its buffer has no room for all of them.
        """
        try:
            refused = await self._client.publish_all(messages)
        except nats.errors.Error as failure:
            raise Unavailable("NATS", type(failure).__name__) from failure
        for each in refused:
            log.warning("A settlement cannot be sent", subject=each.subject, reason=each.reason)

    async def publish(
        self,
        subject: str,
        data: bytes,
        *,
        msg_id: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> PubAck:
        """Store one message and wait for JetStream's confirmation.

        Raises:
            PublishFailed: no confirmation arrived; the message may be stored all the same.
            Unsendable: the server would not accept the message.
        """
        [ack] = await self._confirmed([(subject, data, msg_id, headers)])
        return ack

    async def publish_many(self, publications: Sequence[Publication]) -> list[PubAck]:
        """Store several messages, and wait for all confirmations together.

        Raises:
            PublishFailed: at least one message was not confirmed.
            Unsendable: the server would not accept one message; those before it may be stored.
        """
        return await self._confirmed(
            [(p.subject, p.data, p.msg_id, p.headers) for p in publications]
        )

    async def publish_together(self, publications: Sequence[Publication]) -> bool:
        """Store all messages atomically in one stream, in sequence and in this order, or none.

        Returns False, and stores none, when one of them was stored before. The stream must allow it
        (`allow_atomic`, nats-server 2.12 and up). Source: NATS ADR-50.

        Raises:
            PublishFailed: no confirmation arrived; the messages may be stored all the same.
            Unsendable: the server would not accept one message; none is stored.
        """
        batch_id = secrets.token_hex(11)
        last = publications[-1]
        with AwaitedPubAck(self._confirmations) as awaited:
            items = []
            for number, each in enumerate(publications, start=1):
                # In front of the copy's own: see `_acting_first`.
                acting = {
                    "Nats-Batch-Id": batch_id,
                    "Nats-Batch-Sequence": str(number),
                    "Nats-Msg-Id": each.msg_id,
                }
                reply = ""
                if each is last:
                    acting["Nats-Batch-Commit"] = "1"
                    reply = awaited.expect(each.subject)
                items.append((each.subject, reply, {**acting, **each.headers}, each.data))
            try:
                await self._client.publish_all_headed(items)
            except nats.errors.Error as failure:
                raise PublishFailed(last.subject, type(failure).__name__) from failure
            await awaited.wait(ACK_TIMEOUT_S)
            try:
                awaited.collect(ACK_TIMEOUT_S)
            except PublishFailed as failure:
                cause = failure.__cause__
                if isinstance(cause, PublishRefused) and cause.err_code == _HOLDS_DUPLICATE:
                    return False
                raise
        return True

    async def publish_core(
        self, subject: str, data: bytes, *, headers: Mapping[str, str] | None = None
    ) -> None:
        """Publish one message without confirmation.

        Raises:
            PublishFailed: the connection could not take the message.
            Unsendable: the server would not accept the message.
        """
        await self._hand(subject, data, "", headers)

    async def request(
        self,
        subject: str,
        data: bytes,
        *,
        timeout_s: float = 5.0,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """Send a request to a micro-service endpoint and wait for the answer.

        Raises:
            RequestFailed: the endpoint answered with an error.
            NoAnswer: no endpoint has subscribed, or no answer arrived in time; `reason` is `no
                responders` or `timeout`.
            Unavailable: the connection is lost.
            Unsendable: the server would not accept the request.
        """
        try:
            answer = await self._client.ask(subject, data, timeout_s, headers or None)
        except nats.errors.NoRespondersError as failure:
            raise NoAnswer(subject, "no responders") from failure
        except (TimeoutError, nats.errors.Error) as failure:
            if not self._client.is_connected:
                raise Unavailable("NATS", "the connection is lost") from failure
            reason = "timeout" if isinstance(failure, TimeoutError) else type(failure).__name__
            raise NoAnswer(subject, reason) from failure
        if answer.unreadable is not None:
            raise NoAnswer(subject, f"the answer cannot be read: {answer.unreadable.reason}")
        found = answer.headers
        if code := found.get("Nats-Service-Error-Code"):
            number = int(code) if code.isdigit() else 500
            after = found.get("Retry-After", "")
            raise RequestFailed(
                *(subject, number, found.get("Nats-Service-Error", ""), answer.data),
                retry_after_s=int(after) if _SECONDS.fullmatch(after) else None,
            )
        return Reply(answer.data, found)

    async def request_many(self, subject: str, data: bytes, *, wait_s: float) -> list[Reply]:
        """Send one request to all subscribers; return the answers that arrive within `wait_s`.

        Time in which the event loop is blocked does not count: answers may wait to be read then.

        Raises:
            Unavailable: the connection is gone, or the answers are too many.
            Unsendable: the server would not accept the request.
        """
        inbox = f"{HOST_INBOX}.{secrets.token_hex(11)}"
        answers = Answers()
        subscription = await self.subscribe(inbox, answers.add)
        try:
            await self.send(subject, data, inbox)
            for _ in range(_SLICES):
                await asyncio.sleep(wait_s / _SLICES)
                if answers.is_silent or answers.is_cut:
                    break
        finally:
            await subscription.unsubscribe()
        if answers.is_cut:
            raise Unavailable("NATS", f"the answers have more than {MOST_BYTES} bytes")
        return answers.replies

    async def pull(
        self, stream: str, durable: str, *, messages: int, size_bytes: int, wait_s: float
    ) -> list[Message]:
        """Pull what a durable consumer has; see `PullOnce.pull`.

        Raises:
            NoAnswer: the consumer does not exist, or JetStream does not answer in time.
            RequestFailed: JetStream refused the request.
            Unavailable: the connection is gone.
            Unsendable: a name is not valid.
        """
        return await PullOnce(self, stream, durable).pull(messages, size_bytes, wait_s)

    async def subscribe(self, subject: str, callback: Callback, *, queue: str = "") -> Subscription:
        """Call `callback` for each message on `subject`, one message after the other.

        A plain function is called at once and must not block; a coroutine function is called when
        the call before has ended. What a callback raises is logged, and the callback is called with
        the next message.

        Raises:
            Unavailable: the connection is closed.
            Unsendable: the subject or queue group is not one to subscribe to.
        """
        try:
            return Subscription(await self._client.listen(subject, callback, queue))
        except nats.errors.Error as failure:
            raise Unavailable("NATS", type(failure).__name__) from failure

    async def respond(
        self, message: Message, data: bytes, headers: Mapping[str, str] | None = None
    ) -> None:
        """Answer a request; nothing happens when the request has no reply subject.

        Raises:
            PublishFailed: the connection could not take the answer.
            Unsendable: the server would not accept the message.
        """
        if message.reply:
            await self._hand(message.reply, data, "", headers)

    async def in_progress(self, message: Message) -> None:
        """Tell JetStream that the message is still being worked on."""
        await self.send(message.reply, b"+WPI")

    async def _hand(
        self, subject: str, data: bytes, reply: str, headers: Mapping[str, str] | None
    ) -> None:
        try:
            await self._client.publish(subject, data, reply, headers or None)
        except nats.errors.Error as failure:
            raise PublishFailed(subject, type(failure).__name__) from failure

    async def _confirmed(self, items: Sequence[_Item]) -> list[PubAck]:
        deadline_s = asyncio.get_running_loop().time() + ACK_TIMEOUT_S
        awaited = AwaitedPubAck(self._confirmations)
        with awaited:
            for item in items:
                await self._offer(item, awaited.expect(item[0]))
            await awaited.wait(ACK_TIMEOUT_S)
            for delay_s in OFFER_AGAIN_S:
                if not (unheard := awaited.unheard()):
                    break
                await asyncio.sleep(delay_s)
                for index in unheard:
                    await self._offer(items[index], awaited.expect_again(index))
                await awaited.wait(max(0.0, deadline_s - asyncio.get_running_loop().time()))
            return awaited.collect(ACK_TIMEOUT_S)

    async def _offer(self, item: _Item, reply: str) -> None:
        subject, data, msg_id, headers = item
        sent = dict(headers) if headers else {}
        if msg_id is not None:
            sent["Nats-Msg-Id"] = msg_id
        await self._hand(subject, data, reply, _acting_first(sent))

    async def _on_reconnect(self) -> None:
        self.reconnects += 1
        log.info("NATS connection rebuilt")
        for callback in list(self._reconnect_callbacks):
            callback()

    async def _on_closed(self) -> None:
        if not self._closing:
            self._ended.set()

    async def _on_disconnect(self) -> None:
        if not self._client.is_closed:
            log.warning("NATS connection lost, reconnecting")


def _acting_first(headers: dict[str, str]) -> dict[str, str]:
    """The headers, with the ones that the server acts on first.

    Up to 2.12 a nats-server searches for a header by the first place where its name occurs, even as
    the end of another name: after a `Runtime-Original-Nats-Msg-Id`, a copy's own `Nats-Msg-Id`
    would not be found.
    """
    if len(headers) <= 1:
        return headers
    acting = {name: value for name, value in headers.items() if name.startswith("Nats-")}
    return {**acting, **headers}


def _not_for_this_user(url: str) -> Problem:
    return Problem(
        f"NATS at {url.rpartition('@')[2]}",
        "",
        f"this user may not subscribe to {HOST_INBOX}.>, where answers arrive",
        "name user and password in NATS_URL; those of an embedded server are runtime and what "
        "nats.password in its data directory holds",
    )
