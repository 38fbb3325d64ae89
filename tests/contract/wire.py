"""The wire: records hosts' settlements of messages, and JetStream's advisories about them."""

import asyncio
import json
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

from runtime.broker.connection import Broker
from runtime.message import Message
from tests.support.host import DEADLINE_S

T = TypeVar("T")

_NS = 1_000_000_000
_TOKENS_V1 = 9
PROGRESS = "+WPI"

Place = tuple[str, str]
"""A stream and a durable."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One settlement or in-progress message.

    Attributes:
        place: the consumer of the delivery.
        verb: `+ACK`, `-NAK`, `+TERM` or `+WPI`.
        text: the text after the verb.
        subject: the delivery's ack subject; another settlement to it is of the same delivery.
        seen_s: the event loop's time when the frame was received.
    """

    place: Place
    verb: str
    text: str
    subject: str
    seen_s: float

    @property
    def delay_s(self) -> float | None:
        """The delay of a `-NAK`; None for a `-NAK` without delay and for another verb."""
        if self.verb != "-NAK" or not self.text:
            return None
        return float(json.loads(self.text)["delay"] / _NS)


class Wire:
    """Records every settlement on a server, of all hosts, in order."""

    def __init__(self, broker: Broker) -> None:
        self.frames: list[Frame] = []
        self.advisories: list[dict[str, Any]] = []
        self._broker = broker
        self._read: set[int] = set()
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._open = AsyncExitStack()

    async def open(self) -> None:
        for subject, note in (
            ("$JS.ACK.>", self._note_frame),
            ("$JS.EVENT.ADVISORY.CONSUMER.>", self._note_advisory),
        ):
            subscription = await self._broker.subscribe(subject, note)
            self._open.push_async_callback(subscription.unsubscribe)
        await self._broker.flush(DEADLINE_S)

    async def close(self) -> None:
        await self._open.aclose()

    async def next(self, *places: Place) -> Frame:
        """The next settlement at these places that was not returned before."""

        def look() -> Frame | None:
            for number, frame in self._unread(places):
                self._read.add(number)
                return frame
            return None

        return await self.wait_for(look, f"a settlement at {places}")

    def unread(self, *places: Place) -> list[Frame]:
        """The settlements at these places that `next` has not returned yet."""
        return [frame for _, frame in self._unread(places)]

    async def run_now(self, frame: Frame) -> None:
        """End the delay of a `-NAK`, by a second `-NAK` without a delay."""
        await self._broker.send(frame.subject, b"-NAK")
        ours = await self.next(frame.place)
        assert (ours.subject, ours.verb, ours.text) == (frame.subject, "-NAK", "")

    async def advisory(self, kind: str, place: Place) -> dict[str, Any]:
        """The first advisory of this kind about a consumer."""

        def look() -> dict[str, Any] | None:
            for found in self.advisories:
                about = (found.get("stream"), found.get("consumer"))
                if about == place and str(found.get("type")).endswith(f".{kind}"):
                    return found
            return None

        return await self.wait_for(look, f"the advisory {kind} of {place}")

    async def wait_for(self, look: Callable[[], T | None], what: str) -> T:
        """The first result of `look`, which is called after every frame and advisory."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                while (found := look()) is None:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            seen = self.frames[-20:]
            raise AssertionError(f"{what} was not seen, but {seen}") from None
        return found

    def _unread(self, places: tuple[Place, ...]) -> list[tuple[int, Frame]]:
        return [
            (number, frame)
            for number, frame in enumerate(self.frames)
            if number not in self._read and frame.place in places and frame.verb != PROGRESS
        ]

    def _note_frame(self, message: Message) -> None:
        tokens = message.subject.split(".")
        first = 2 if len(tokens) == _TOKENS_V1 else 4
        verb, _, text = message.data.decode().partition(" ")
        place = (tokens[first], tokens[first + 1])
        self.frames.append(Frame(place, verb, text, message.subject, self._loop.time()))
        self._changed.set()

    def _note_advisory(self, message: Message) -> None:
        self.advisories.append(json.loads(message.data))
        self._changed.set()
