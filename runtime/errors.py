"""Every error of the runtime stands in one tree.

RuntimeFault                      the base; never raised itself
├── ConfigError                   a person must change a file or a variable; exit code 2
├── Unavailable                   a server is away; retried, never a function's fault
│   ├── PublishFailed             JetStream did not acknowledge a publish
│   ├── NoAnswer                  nobody serves the endpoint that was asked, or not in time
│   └── NoConnection              all PostgreSQL connections that the function may hold are taken
├── Unsendable                    no NATS server would take the message
│   └── TooLarge                  it is larger than the server takes
├── RequestFailed                 a micro-service endpoint answered with an error
├── EffectNotAwaited              a function returned before an effect of its context had ended
├── PayloadError                  a payload does not fit a handler's annotation; never retried
└── Steering                      raised by a function to steer its delivery
    ├── Reject                    never retry: a dead letter, or an error to an endpoint's caller
    └── Retry                     try again, after a delay where one is given
"""

from collections.abc import Sequence
from dataclasses import dataclass

from runtime.safe_text import text_of

SHOWN_CHARACTERS = 128
"""How much of a subject stands in an error: subjects may be made of what devices send."""


class RuntimeFault(Exception):  # noqa: N818 - the tree's names are outcomes, not `…Error`s
    """Base of every error the runtime raises on purpose."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in what a person wrote: where it stands, what is wrong and what would be right.

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
    """Something that a person wrote cannot be used. Carries every problem, not the first alone."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class Unavailable(RuntimeFault):
    """A server that the work needs did not answer.

    Args:
        what: the server or stream, without credentials ("NATS", "PostgreSQL", "stream TELEMETRY").
        reason: why, in words for an operator's log; never sent to a caller.
    """

    def __init__(self, what: str, reason: str) -> None:
        self.what = what
        self.reason = reason
        super().__init__(f"{what} is unavailable: {reason}")


class PublishFailed(Unavailable):
    """JetStream did not confirm a publish, so nothing may be assumed stored."""

    def __init__(self, subject: str, reason: str) -> None:
        self.subject = subject
        super().__init__(f"publishing to {subject}", reason)


class NoAnswer(Unavailable):
    """An endpoint did not answer: nobody serves it, or not in time. `reason` says which.

    The servers may be well, so unlike an outage it is an ordinary failure of the function.
    """


class NoConnection(Unavailable, TimeoutError):  # noqa: N818 - as the others of the tree
    """No PostgreSQL connection became free in time. The server may be well."""

    def __init__(self, reason: str) -> None:
        super().__init__("PostgreSQL", reason)


class Unsendable(RuntimeFault):
    """A message that is not sent, as no NATS server would take it: its sender must change it.

    It is the failure of whatever wanted to send it, and no outage.

    Attributes:
        subject: where it was to go, printable and cut to `SHOWN_CHARACTERS`.
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
    """A message that is larger, with its headers, than the server takes.

    Attributes:
        size_bytes: payload and headers.
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
        code: the number in `Nats-Service-Error-Code` (HTTP's meanings: 404, 409, 429, 503 …).
        description: the text in `Nats-Service-Error`, safe to show to a caller.
        body: the reply's payload, empty or problem details in JSON.
    """

    def __init__(self, subject: str, code: int, description: str, body: bytes = b"") -> None:
        self.subject = subject
        self.code = code
        self.description = description
        self.body = body
        super().__init__(f"{subject} answered {code}: {description}")


class EffectNotAwaited(RuntimeFault):
    """A function returned, and an effect of its context was not awaited to its end.

    Attributes:
        where: `file:line` of the function that asked for the effect.
    """

    def __init__(self, effect: str, where: str, wrong: str) -> None:
        self.where = where
        super().__init__(f"{effect} at {where} {wrong} when the function returned")


class PayloadError(RuntimeFault):
    """A payload does not fit the handler's annotation, and never will.

    Attributes:
        reason: field and rule, without the value; safe to show to whoever sent it.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class Steering(RuntimeFault):
    """Base of what a function raises to steer its own delivery."""


class Reject(Steering):
    """Never try this message again.

    A consumer's message is copied to the dead-letter stream and then terminated. An endpoint's
    caller gets `status` and `reason`, so neither may hold a secret or an internal.

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
        delay_s: seconds to wait, at least; None leaves it to the function's retry policy. Less than
            0 counts as 0, more than 30 days as 30 days. What is no number of seconds, NaN for
            example, counts as None and is a warning in the log.
    """

    def __init__(self, reason: str = "", *, delay_s: float | None = None) -> None:
        self.reason = reason if _is_given(reason) else "the function asked for another attempt"
        self.delay_s = delay_s
        super().__init__(text_of(self.reason))


def _is_given(reason: object) -> bool:
    """Whether a reason says something; it may be of any type, though it should be a text."""
    return reason is not None and not (isinstance(reason, str) and not reason)
