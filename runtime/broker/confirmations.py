"""JetStream's publish confirmations, many awaited together on one inbox."""

import asyncio
import itertools
import secrets
from types import TracebackType
from typing import Self

import orjson

from runtime.context import PubAck
from runtime.errors import PublishFailed
from runtime.message import Message
from runtime.subjects import HOST_INBOX


class Unheard(PublishFailed):
    """No stream took the publish, so the message is stored nowhere."""

    def __init__(self) -> None:
        super().__init__("", "no stream took it", is_refused=True)


NO_SPACE = 10023
"""Error codes of a server whose disk or store is full. Source: nats-server `server/errors.json`."""
_IN_PROCESS = 10158
"""A message with the same id is being stored. Source: nats-server `server/errors.json`."""


class PublishRefused(PublishFailed):
    """JetStream refused the publish; `is_refused` says whether the message is stored nowhere.

    Attributes:
        err_code: JetStream's own number. Source: nats-server `server/errors.json`.
    """

    def __init__(self, reason: str, err_code: int) -> None:
        self.err_code = err_code
        super().__init__("", reason, is_refused=err_code != _IN_PROCESS)


class Confirmations:
    """Receives all confirmations of one connection and resolves a future for each.

    Attributes:
        inbox: prefix of the reply subjects; `receive` must be subscribed to `{inbox}.*`.
        refused_for_space_at_s: when the server last refused a message for lack of storage, on the
            loop's clock.
    """

    def __init__(self) -> None:
        self.inbox = f"{HOST_INBOX}.{secrets.token_hex(11)}"
        self.refused_for_space_at_s = float("-inf")
        self._expected: dict[str, asyncio.Future[PubAck]] = {}
        self._numbers = itertools.count()

    def expect(self) -> tuple[str, "asyncio.Future[PubAck]"]:
        """A reply subject for one publish, and the future of its confirmation."""
        reply = f"{self.inbox}.{next(self._numbers)}"
        future = asyncio.get_running_loop().create_future()
        self._expected[reply] = future
        return reply, future

    def forget(self, reply: str) -> None:
        """Drop the confirmation of `reply` if it still arrives."""
        del self._expected[reply]

    def receive(self, msg: Message) -> None:
        """Resolve the future of a confirmation, a refusal, or a missing stream."""
        future = self._expected.get(msg.subject)
        if future is None or future.done():
            return
        answer = _read(msg)
        if isinstance(answer, PubAck):
            future.set_result(answer)
        else:
            if isinstance(answer, PublishRefused) and answer.err_code == NO_SPACE:
                self.refused_for_space_at_s = asyncio.get_running_loop().time()
            future.set_exception(answer)


class AwaitedPubAck:
    """The confirmations that one call waits for; leaving the block forgets them."""

    def __init__(self, confirmations: Confirmations) -> None:
        self._confirmations = confirmations
        self._subjects: list[str] = []
        self._replies: list[str] = []
        self._futures: dict[str, asyncio.Future[PubAck]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for reply in self._replies:
            self._forget(reply)

    def expect(self, subject: str) -> str:
        """The reply subject for one more message."""
        reply, future = self._confirmations.expect()
        self._subjects.append(subject)
        self._replies.append(reply)
        self._futures[reply] = future
        return reply

    def expect_again(self, index: int) -> str:
        """The reply subject for another attempt to publish message `index`, counted from 0."""
        reply, future = self._confirmations.expect()
        self._forget(self._replies[index])
        self._replies[index] = reply
        self._futures[reply] = future
        return reply

    async def wait(self, timeout_s: float) -> None:
        """Return when every message has an answer, or after `timeout_s`."""
        if len(self._futures) > 1:
            await asyncio.wait(self._futures.values(), timeout=timeout_s)
        elif self._futures:
            [future] = self._futures.values()
            await _wait_for_one(future, timeout_s)

    def unheard(self) -> list[int]:
        """The numbers of the messages that no stream took."""
        return [
            index
            for index, reply in enumerate(self._replies)
            if (future := self._futures[reply]).done() and isinstance(future.exception(), Unheard)
        ]

    def collect(self, timeout_s: float) -> list[PubAck]:
        """All confirmations, in the order of `expect`.

        Args:
            timeout_s: how long `wait` waited; only named in the error.

        Raises:
            PublishFailed: a confirmation did not arrive in time, or JetStream refused a message;
                of several messages, `outcomes` has what became of each.
        """
        asked = list(zip(self._replies, self._subjects, strict=True))
        try:
            return [
                _confirmation(self._futures[reply], subject, timeout_s) for reply, subject in asked
            ]
        except PublishFailed as failure:
            if len(asked) > 1:
                failure.outcomes = tuple(
                    _outcome(self._futures[reply], subject, timeout_s) for reply, subject in asked
                )
            raise

    def _forget(self, reply: str) -> None:
        self._confirmations.forget(reply)
        future = self._futures.pop(reply)
        if future.done() and not future.cancelled():
            future.exception()  # Marks it as retrieved: only the first failure is raised.


async def _wait_for_one(future: "asyncio.Future[PubAck]", timeout_s: float) -> None:
    """As `asyncio.wait` for one future, at a third of its cost."""
    if future.done() or timeout_s <= 0:
        return
    loop = future.get_loop()
    waiter = loop.create_future()

    def end(_: object = None) -> None:
        if not waiter.done():
            waiter.set_result(None)

    timer = loop.call_later(timeout_s, end)
    future.add_done_callback(end)
    try:
        await waiter
    finally:
        timer.cancel()
        future.remove_done_callback(end)


def _read(msg: Message) -> PubAck | PublishFailed:
    """The confirmation, or the reason why there is none."""
    if msg.headers.get("Status") == "503":
        return Unheard()
    try:
        ack = orjson.loads(msg.data)
        if error := ack.get("error"):
            return PublishRefused(
                str(error.get("description", "refused")), error.get("err_code", 0)
            )
        return PubAck(ack["stream"], ack["seq"], ack.get("duplicate", False))
    except (ValueError, KeyError, AttributeError):
        return PublishFailed("", "the answer was not a confirmation")


def _outcome(
    future: "asyncio.Future[PubAck]", subject: str, timeout_s: float
) -> PubAck | PublishFailed:
    try:
        return _confirmation(future, subject, timeout_s)
    except PublishFailed as failure:
        return failure


def _confirmation(future: "asyncio.Future[PubAck]", subject: str, timeout_s: float) -> PubAck:
    if not future.done():
        raise PublishFailed(subject, f"no confirmation within {timeout_s:g} s")
    failure = future.exception()
    if isinstance(failure, PublishFailed):
        raise PublishFailed(subject, failure.reason, is_refused=failure.is_refused) from failure
    return future.result()
