"""A scene: one function of one kind, one message, and everything observable about both."""

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from runtime.broker.connection import ApiError, Broker
from runtime.broker.dead_letters import DeadLetter
from runtime.broker.stored import parse_time_ns
from tests.contract.hosting import InProcess, OwnProcess, Served
from tests.contract.kinds import Kind
from tests.contract.refusal import Refusal
from tests.contract.stage import Call, Origin, Stage
from tests.contract.wire import Frame, Place, Wire
from tests.support.host import QUICK, consumer, eventually, fresh, letters_of, wait_until_settled

PAYLOAD = b"\x00\xffthe original bytes"


class Scene:
    """State of a test, on which plays and settlements act in turn.

    Attributes:
        place: the consumer that delivers the message now: the stream's, or the mailbox's.
        message: the message of the test; None until it is known.
        counted: the settlements that the host must have counted since it started.
        letters: how many dead letters the function must have by now.
    """

    def __init__(
        self,
        kind: Kind,
        broker: Broker,
        url: str,
        folder: Path,
        *,
        spec: Mapping[str, Any],
        payload: bytes | None = None,
        grace_s: float = 10.0,
        in_own_process: bool = False,
    ) -> None:
        self.kind = kind
        self.broker = broker
        self.name = fresh("work")
        self.stream = fresh("WORK")
        self.place: Place = (self.stream, self.name)
        if kind.is_scheduled:
            self.place = ("SCHEDULES", f"schedule-{self.name}")
        self.mailbox: Place = ("MAILBOX", self.name)
        self.home = self.place
        self.stage = Stage(folder / "stage")
        self.wire = Wire(broker)
        self.refusal: Refusal | None = None
        self.message: Origin | None = None
        self.counted: Counter[str] = Counter()
        self.letters = 0
        self._payload = PAYLOAD if payload is None else payload
        self._headers = {"Trace": "t1", "Nats-Msg-Id": self.name}
        handler = kind.handler if payload is None else kind.typed_handler
        served = Served(url, self.name, self.stream, self._spec(handler, spec), grace_s)
        if kind.is_isolated or in_own_process:
            self.host: InProcess | OwnProcess = OwnProcess(served, folder)
        else:
            self.host = InProcess(served)

    async def open(self) -> None:
        """Return when the function is served and the message is sent."""
        await self.stage.open()
        await self.wire.open()
        await self.host.start()
        if not self.kind.is_scheduled:
            await self.send(self._payload, self._headers)

    async def close(self) -> None:
        """End the hosts and everything else that runs."""
        self.stage.close()
        await self.host.stop()
        await self.wire.close()
        # A server limits the consumers of a stream, and all cases share one.
        with suppress(ApiError):
            await self.broker.api(f"CONSUMER.DELETE.MAILBOX.{self.name}")

    async def send(self, data: bytes, headers: Mapping[str, str] | None = None) -> None:
        await self.broker.publish(f"{self.stream}.a", data, headers=headers)

    async def restart(self) -> None:
        """Have a new host serve the function, after the previous host has ended."""
        self.counted.clear()
        await self.host.start()

    def meet(self, call: Call) -> None:
        """Expect that the call has the test's message, with its original position."""
        if self.message is None:
            assert call.message.stream == self.home[0]
            if not self.kind.is_scheduled:
                found = call.message
                assert (found.subject, found.sequence) == (f"{self.stream}.a", 1)
                assert (found.data, found.headers) == (self._payload, self._headers)
            self.message = call.message
        assert call.message == self.message

    def matches(self, letter: DeadLetter) -> bool:
        """Whether a dead letter holds the message unchanged."""
        kept, known = letter.message, self.message
        if known is None:  # The function has never seen it.
            return (kept.stream, kept.data, kept.headers) == (
                self.stream,
                self._payload,
                self._headers,
            )
        return known == Origin(
            kept.stream,
            kept.sequence,
            kept.subject,
            kept.stored_at_ns,
            kept.data,
            dict(kept.headers),
        )

    async def next_settlement(self) -> Frame:
        """The next settlement on the wire, which must be of the delivery that was called last."""
        frame = await self.wire.next(self.home, self.mailbox)
        assert frame.place == self.place, frame
        return frame

    async def look(self) -> dict[str, Any]:
        """What JetStream says of the consumer that delivers the message now."""
        return await consumer(self.broker, *self.place)

    async def expect_held(self) -> None:
        """Expect one unsettled delivery at JetStream, and no settlement on the wire."""
        assert (await self.look())["num_ack_pending"] == 1
        assert not self.wire.unread(self.home, self.mailbox)

    async def expect_silence(self) -> None:
        """Expect no message left, no unexpected event, and correct counts."""
        for place in (self.home, self.mailbox):
            await wait_until_settled(self.broker, *place)
            assert "backoff" not in (await consumer(self.broker, *place))["config"]
        assert not self.wire.unread(self.home, self.mailbox)
        assert not self.stage.waiting
        assert len(await letters_of(self.broker, self.name)) == self.letters
        assert await self.host.counted() == self.counted

    async def stored_at_ns(self, stream: str, sequence: int) -> int:
        """When the stream stored a message, by the server's clock."""
        found = await self.broker.api(f"STREAM.MSG.GET.{stream}", {"seq": sequence})
        return parse_time_ns(found["message"]["time"])

    async def wait_until_nobody_pulls(self) -> None:
        """Return when JetStream has no pull request for the function any more."""

        async def look() -> bool:
            found = [await consumer(self.broker, *place) for place in (self.home, self.mailbox)]
            return not any(each["num_waiting"] for each in found)

        await eventually(look, f"the end of pulling for {self.name}")

    def _spec(self, handler: str, spec: Mapping[str, Any]) -> dict[str, Any]:
        # One call at a time: the steps of a row come one after the other.
        stated = {
            "handler": f"tests.contract.function:{handler}",
            "settings": {"stage": str(self.stage.path)},
            "retry": QUICK,
            "concurrency": 1,
            **self.kind.spec,
            **spec,
        }
        if not self.kind.is_scheduled:
            added = [each.get("consumer", {}) for each in (self.kind.spec, spec)]
            stated["consumer"] = {"stream": self.stream, **added[0], **added[1]}
        return stated
