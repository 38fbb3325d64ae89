"""The errors of the runtime, in one tree.

RuntimeFault                      the base; never raised itself
├── ConfigError                   a person must change a file or a variable; exit code 2
├── Unavailable                   a server does not answer; retried, never a function's fault
│   ├── PublishFailed             JetStream did not acknowledge a publish
│   ├── NoAnswer                  an endpoint does not exist, or did not answer in time
│   └── NoConnection              all PostgreSQL connections that the function may hold are taken
├── Unsendable                    the NATS server would not accept the message
│   └── TooLarge                  the message is larger than the server accepts
├── RequestFailed                 a micro-service endpoint answered with an error
├── EffectNotAwaited              a function returned before an effect of its context had ended
├── PayloadError                  a payload does not fit a handler's annotation; never retried
└── Steering                      raised by a function to steer its delivery
    ├── Reject                    never retry: a dead letter, or an error to an endpoint's caller
    └── Retry                     try again, after a delay if one is given
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from runtime.safe_text import text_of

SHOWN_CHARACTERS = 128
"""The most characters of a subject in an error: subjects may contain text from devices."""


class RuntimeFault(Exception):  # noqa: N818 - the tree's names are outcomes, not `…Error`s
    """Base of every error the runtime raises on purpose."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in a file or variable: its place, what is wrong, and the remedy.

    `where` reads `file:line`, a variable's name, or a subject on the server; `field` is the dotted
    path inside the file and may be empty.
    """

    where: str
    field: str
    wrong: str
    remedy: str

    def __str__(self) -> str:
        field = f" {self.field}:" if self.field else ""
        return f"{self.where}:{field} {self.wrong}; {self.remedy}"


class ConfigError(RuntimeFault):
    """A file or variable cannot be used. Carries every problem, not only the first."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class Unavailable(RuntimeFault):
    """A server that is needed did not answer.

    Args:
        what: the server or stream, without credentials ("NATS", "PostgreSQL", "stream TELEMETRY").
        reason: the reason, for an operator's log; never sent to a caller.
    """

    def __init__(self, what: str, reason: str) -> None:
        self.what = what
        self.reason = reason
        super().__init__(f"{what} is unavailable: {reason}")


class PublishFailed(Unavailable):
    """JetStream did not confirm a publish, so the message may not be stored.

    Attributes:
        subject: the message's subject.
        is_refused: JetStream or the server has said that the message is stored nowhere: the stream
            is full, or no stream has the subject. Otherwise it may be stored.
        outcomes: of `publish_many`, for each message in order its `PubAck` or its
            `PublishFailed`; else empty.
    """

    def __init__(self, subject: str, reason: str, *, is_refused: bool = False) -> None:
        self.subject = subject
        self.is_refused = is_refused
        self.outcomes: tuple[Any, ...] = ()
        super().__init__(f"publishing to {subject}", reason)


class NoAnswer(Unavailable):
    """An endpoint does not exist, or did not answer in time; `reason` says which.

    The servers may be up, so this is an ordinary failure of the function, not an outage.
    """


class NoConnection(Unavailable, TimeoutError):  # noqa: N818 - as the others of the tree
    """No PostgreSQL connection became free in time. The server may be up."""

    def __init__(self, reason: str) -> None:
        super().__init__("PostgreSQL", reason)


class Unsendable(RuntimeFault):
    """A message is not sent, because the NATS server would not accept it.

    The sender must change the message: this is the sender's failure, not an outage.

    Attributes:
        subject: the message's subject, escaped and cut to `SHOWN_CHARACTERS`.
        reason: one sentence for a person.
    """

    def __init__(self, subject: str, reason: str) -> None:
        shown = subject.encode("unicode_escape").decode("ascii")
        if len(shown) > SHOWN_CHARACTERS:
            shown = f"{shown[:SHOWN_CHARACTERS]}..."
        self.subject = shown
        self.reason = reason
        super().__init__(f"a message to '{shown}' cannot be sent: {reason}")


class TooLarge(Unsendable):
    """A message with its headers is larger than the server accepts.

    Attributes:
        size_bytes: size of payload and headers.
        limit_bytes: the server's `max_payload`.
    """

    def __init__(self, subject: str, size_bytes: int, limit_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes
        super().__init__(
            subject,
            f"it has {size_bytes:,} bytes with its headers, and the server takes {limit_bytes:,}",
        )


class RequestFailed(RuntimeFault):
    """A micro-service endpoint answered with an error.

    Attributes:
        code: the number in `Nats-Service-Error-Code` (an HTTP status: 404, 409, 429, 503 …).
        description: the text in `Nats-Service-Error`, safe to show to a caller.
        body: the reply's payload, empty or problem details in JSON.
        retry_after_s: seconds after which the endpoint wants to be asked again; None if it says
            nothing about that.
    """

    def __init__(
        self,
        subject: str,
        code: int,
        description: str,
        body: bytes = b"",
        *,
        retry_after_s: int | None = None,
    ) -> None:
        self.subject = subject
        self.code = code
        self.description = description
        self.body = body
        self.retry_after_s = retry_after_s
        super().__init__(f"{subject} answered {code}: {description}")


class EffectNotAwaited(RuntimeFault):
    """A function returned before an effect of its context had ended.

    Attributes:
        where: `file:line` of the function's call that began the effect.
    """

    def __init__(self, effect: str, where: str, wrong: str) -> None:
        self.where = where
        super().__init__(f"{effect} at {where} {wrong} when the function returned")


class PayloadError(RuntimeFault):
    """A payload does not fit the handler's annotation, so another attempt would not help.

    Attributes:
        reason: field and rule, without the value; safe to show to the sender.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class Steering(RuntimeFault):
    """Base of the exceptions that a function raises to steer its own delivery."""


class Reject(Steering):
    """Never try this message again.

    A consumer's message is copied to the dead-letter stream and then terminated. An endpoint's
    caller gets `status` and `reason`, so `reason` must not contain a secret or an internal detail.

    Args:
        code: reason code in upper snake case, such as `UNKNOWN_ROUTE`.
        reason: one sentence for a person.
        status: the error code an endpoint answers with, from 400 to 599 with HTTP's meaning; any
            other value counts as 400.
    """

    def __init__(self, code: str, reason: str = "", *, status: int = 400) -> None:
        self.code = code
        self.reason = reason if _is_given(reason) else code
        self.status = status
        super().__init__(f"{text_of(code)}: {text_of(self.reason)}")


class Retry(Steering):
    """Try this message again.

    Args:
        reason: one sentence for a person.
        delay_s: least time to wait, in seconds; None means the function's retry policy. Less than 0
            counts as 0, more than 30 days as 30 days. A value that is not a number of seconds, NaN
            for example, counts as None and is logged as a warning.
        at_least_s: wait as the retry policy says, or so long if that is longer: for a wait that
            others ask for, as a short one of theirs must not use up the attempts. Bounded like
            `delay_s`.
        counts: False if the function has tried nothing, because it knows that now is too early: the
            call uses up no attempt, so the message is never given up for it.
    """

    def __init__(
        self,
        reason: str = "",
        *,
        delay_s: float | None = None,
        at_least_s: float | None = None,
        counts: bool = True,
    ) -> None:
        self.reason = reason if _is_given(reason) else "the function asked for another attempt"
        self.delay_s = delay_s
        self.at_least_s = at_least_s
        self.counts = counts
        super().__init__(text_of(self.reason))


def _is_given(reason: object) -> bool:
    """Whether a reason is given; it may have any type, though it should be a string."""
    return reason is not None and not (isinstance(reason, str) and not reason)
