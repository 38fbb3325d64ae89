"""Why a request got no answer.

Fault                  the base; never raised itself
├── NameNotResolved    of the origin: its name has no address
├── ConnectFailed      of the origin: no address accepted a connection
├── ConnectTimeout     of the origin: no connection within the time limit
├── TlsFailed          of the origin: certificate or TLS version not accepted
├── AnswerTimeout      of the endpoint: connected, and no status within the time limit
├── ConnectionLost     of the endpoint: connected, and closed before the status
└── NotHttp            of the endpoint: the answer is not HTTP, or exceeds a bound
DestinationRefused     the policy allows none of the addresses; another attempt would not help
"""

from typing import ClassVar


class Fault(Exception):  # noqa: N818 - names what happened
    """A request without an answer.

    No fault repeats text from the endpoint or the operating system, since that may name addresses.

    Attributes:
        code: reason code for the attempt log.
        reason: one sentence for a person.
        is_of_origin: whether every URL of the same scheme, host and port would fail alike.
    """

    code: ClassVar[str]
    reason: ClassVar[str]
    is_of_origin: ClassVar[bool] = False


class NameNotResolved(Fault):
    """The host has no address at present."""

    code, reason = "NAME_NOT_RESOLVED", "the endpoint's name has no address"
    is_of_origin = True


class ConnectFailed(Fault):
    """No address of the host accepted a connection."""

    code, reason = "CONNECTION_FAILED", "the endpoint did not accept a connection"
    is_of_origin = True


class ConnectTimeout(Fault):
    """Resolving, connecting and TLS took longer than the time limit."""

    code, reason = "CONNECT_TIMEOUT", "the endpoint could not be connected to in time"
    is_of_origin = True


class TlsFailed(Fault):
    """The TLS handshake failed."""

    code = "TLS_FAILED"
    reason = "the endpoint's certificate or TLS version was not accepted"
    is_of_origin = True


class AnswerTimeout(Fault):
    """No status within the time limit."""

    code, reason = "TIMEOUT", "the endpoint did not answer in time"


class ConnectionLost(Fault):
    """The endpoint closed the connection before it answered."""

    code, reason = "CONNECTION_LOST", "the endpoint closed the connection before it answered"


class NotHttp(Fault):
    """The answer is not HTTP/1, its head is too long, or it has too many interim answers."""

    code, reason = "PROTOCOL_ERROR", "the endpoint did not speak HTTP"


class DestinationRefused(Exception):  # noqa: N818 - names what happened
    """The policy allows none of the destination's addresses."""


__all__ = [
    "AnswerTimeout",
    "ConnectFailed",
    "ConnectTimeout",
    "ConnectionLost",
    "DestinationRefused",
    "Fault",
    "NameNotResolved",
    "NotHttp",
    "TlsFailed",
]
