"""What a host under test decided and sent, with the assertions about it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from runtime.broker.ack_subject import origin_of
from runtime.broker.dead_letters import DeadLetter
from runtime.dispatch import Outcome
from runtime.loader import Function
from runtime.loader.payload import encode
from runtime.local.local_call import Settling, settling_of
from runtime.local.recorded_effects import Sent
from runtime.message import Message
from runtime.subjects import matches

_MOST_LINES = 100


@dataclass(frozen=True, slots=True)
class Decision:
    """How one delivery of a message was settled.

    Attributes:
        at_s: seconds since the host began.
        attempt: number of the call, 1 for the first.
        settled_in: the stream that delivered it: its own, or the mailbox.
    """

    at_s: float
    function: str
    stream: str
    sequence: int
    subject: str
    attempt: int
    settling: Settling
    settled_in: str = ""

    def __str__(self) -> str:
        place = f"{self.stream}:{self.sequence} {self.subject}"
        return (
            f"{self.at_s:9.3f} s  {self.function}  {place}  attempt {self.attempt}  {self.settling}"
        )


class Journal:
    """Records decisions and sent messages, and asserts on them.

    A failed assertion prints everything that was recorded.
    """

    def __init__(self) -> None:
        self.decisions: list[Decision] = []
        self.sent: list[Sent] = []
        self.letters: list[DeadLetter] = []
        self._functions: dict[str, Function] = {}
        self._time: Callable[[], float] = lambda: 0.0

    def begin(self, functions: dict[str, Function], time_s: Callable[[], float]) -> None:
        """Start recording; `time_s` is in seconds since the host began."""
        self._functions, self._time = functions, time_s

    def observe(self, function: str, message: Message, outcome: Outcome) -> None:
        """Record an outcome; the observer of an `ObservedSettlement`."""
        self.decisions.append(
            Decision(
                self._time(),
                function,
                message.stream,
                message.sequence,
                message.subject,
                message.attempt,
                settling_of(outcome, self._functions[function]),
                origin_of(message.reply)[0] if message.reply else "",
            )
        )

    def waiting(self, function: str) -> list[str]:
        """For each message that waits for its next attempt: the stream that holds it."""
        last = {
            (each.stream, each.sequence): each
            for each in self.decisions
            if each.function == function
        }
        return [
            each.settled_in for each in last.values() if each.settling.action in ("nak", "wait")
        ]

    def published(self, pattern: str = ">") -> list[Sent]:
        """The messages that functions published on matching subjects, oldest first."""
        return [
            each
            for each in self.sent
            if each.kind != "request" and not each.duplicate and matches(pattern, each.subject)
        ]

    def settled(self, actions: Sequence[str], function: str | None, subject: str) -> list[Decision]:
        """The decisions of these kinds."""
        return [
            each
            for each in self.decisions
            if each.settling.action in actions
            and function in (None, each.function)
            and matches(subject, each.subject)
        ]

    def check(self, found: Sequence[object], count: int | None, wanted: str) -> None:
        """Fail unless something was found, or exactly `count`.

        Raises:
            AssertionError: with all that was recorded.
        """
        if len(found) == count or (count is None and found):
            return
        number = "at least 1" if count is None else str(count)
        raise AssertionError(f"{wanted}: expected {number}, found {len(found)}\n{self}")

    def __str__(self) -> str:
        parts = [
            listed("settling decisions", self.decisions),
            listed("sent", self.sent),
            listed("dead letters", [_letter_line(each) for each in self.letters]),
        ]
        return "\n".join(parts)


@dataclass(frozen=True, slots=True)
class Expected:
    """What an assertion looks for, as a sentence."""

    what: str
    fields: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        shown = ", ".join(
            f"{name}={value!r}" for name, value in self.fields.items() if value is not None
        )
        return f"{self.what}({shown})"


def has_data(sent: Sent, data: object) -> bool:
    """Whether the payload is `data`: bytes as they are, other values as JSON."""
    if isinstance(data, bytes):
        return sent.data == data
    try:
        return bool(sent.json() == Sent("", "", encode(data)).json())
    except ValueError:
        return False


def _letter_line(letter: DeadLetter) -> str:
    message = letter.message
    place = f"{message.stream}:{message.sequence} {message.subject}"
    return f"{letter.function}  {place}  {letter.code}: {letter.reason}"


def listed(title: str, lines: Sequence[object]) -> str:
    """A title and a line for each object, at most `_MOST_LINES`."""
    shown = [f"  {line}" for line in lines[:_MOST_LINES]]
    if len(lines) > _MOST_LINES:
        shown.append(f"  and {len(lines) - _MOST_LINES} more")
    return "\n".join([f"{title}:", *(shown or ["  none"])])
