"""Why a request got no answer.

Fault                  the base; never raised itself
├── NameNotResolved    of the origin: its name has no address
├── ConnectFailed      of the origin: no address accepted a connection
├── ConnectTimeout     of the origin: no connection within the time limit
│   └── ConnectHurried of the endpoint: little of the limit was left for it
├── TlsFailed          of the origin: certificate or TLS version not accepted
├── ProxyNoWay         of the origin: the egress proxy could not connect to it
├── AnswerTimeout      of the endpoint: connected, and no status within the time limit
├── ConnectionLost     of the endpoint: connected, and closed before the status
├── NotHttp            of the endpoint: the answer is not HTTP, or exceeds a bound
├── CertificateEnded   of the endpoint: its client certificate is not valid any more
├── CertificateUnusable  of the endpoint: its certificates cannot be used
├── TokenFailed        of the endpoint: its token endpoint gave no token
│   └── TokenRefused   of the endpoint: its token endpoint does not accept the credentials
└── ProxyFailed        of this installation: the egress proxy does not work
DestinationRefused     the policy allows none of the addresses; another attempt would not help
└── TokenUrlNotAllowed   the same, of the token endpoint
"""

import asyncio
from typing import Any, ClassVar


class Fault(Exception):  # noqa: N818 - names what happened
    """A request without an answer.

    No fault repeats text from the endpoint or the operating system, since that may name addresses.

    Attributes:
        code: reason code for the attempt log.
        reason: one sentence for a person.
        is_of_origin: whether every URL of the same scheme, host and port would fail alike.
        is_of_proxy: whether the cause is this installation's proxy, whatever the URL.
        is_of_route: whether the route's own choices kept it from being connected to.
    """

    code: ClassVar[str]
    reason: str
    is_of_origin: ClassVar[bool] = False
    is_of_proxy: ClassVar[bool] = False
    is_of_route: ClassVar[bool] = False


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


class ConnectHurried(ConnectTimeout):
    """The same, when the tenant's own choices had left too little time.

    A route's short limit, or a token endpoint that answers late, says nothing about the origin,
    which other tenants' endpoints share.
    """

    is_of_origin, is_of_route = False, True


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


class CertificateEnded(Fault):
    """The route's client certificate is not valid any more."""

    code, reason = "CLIENT_CERTIFICATE_EXPIRED", "the route's client certificate has ended"
    is_of_route = True


class CertificateUnusable(Fault):
    """OpenSSL does not take the route's certificates."""

    code = "CLIENT_CERTIFICATE_UNUSABLE"
    reason = "the route's certificates or private key cannot be used"
    is_of_route = True


class TokenFailed(Fault):
    """The token endpoint gave no token.

    Args:
        what: a status, a known error of OAuth or a fault's code.
    """

    code = "TOKEN_FAILED"
    is_of_route = True

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.reason = f"the token endpoint gave no token: {what}"


class TokenRefused(TokenFailed):
    """The token endpoint does not accept the credentials."""

    code = "TOKEN_REFUSED"

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.reason = f"the token endpoint does not accept the route's credentials: {what}"


class ProxyNoWay(Fault):
    """The egress proxy answered that it could not connect to the endpoint.

    Args:
        status: the proxy's.
    """

    code = "PROXY_CONNECT_FAILED"
    is_of_origin = True

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.reason = f"the egress proxy could not connect to the endpoint, and answered {status}"


class ProxyFailed(Fault):
    """The egress proxy does not work, so nothing is known of the endpoint.

    Args:
        what: one phrase for a person, without the proxy's address.
    """

    code = "PROXY_FAILED"
    is_of_proxy = True

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.reason = f"the egress proxy {what}"


class DestinationRefused(Exception):  # noqa: N818 - names what happened
    """The policy allows none of the destination's addresses."""

    code = "DESTINATION_NOT_ALLOWED"
    reason = "the URL leads to no allowed address"


class TokenUrlNotAllowed(DestinationRefused):
    """The policy allows none of the token endpoint's addresses."""

    code = "TOKEN_URL_NOT_ALLOWED"
    reason = "the token endpoint's URL leads to no allowed address"


def take_failure(task: "asyncio.Task[Any]") -> None:
    """Take the failure of a task, for which every caller may have ceased to wait.

    Else asyncio logs it as an error, with a traceback, for every request that ended before.
    """
    if not task.cancelled():
        task.exception()


__all__ = [
    "AnswerTimeout",
    "CertificateEnded",
    "CertificateUnusable",
    "ConnectFailed",
    "ConnectHurried",
    "ConnectTimeout",
    "ConnectionLost",
    "DestinationRefused",
    "Fault",
    "NameNotResolved",
    "NotHttp",
    "ProxyFailed",
    "ProxyNoWay",
    "TlsFailed",
    "TokenFailed",
    "TokenRefused",
    "TokenUrlNotAllowed",
    "take_failure",
]
