"""Sends email to one SMTP server over a bounded number of connections, which are kept for reuse."""

import asyncio
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from aiosmtplib import (
    SMTP,
    SMTPAuthenticationError,
    SMTPConnectError,
    SMTPException,
    SMTPRecipientRefused,
    SMTPResponseException,
    SMTPServerDisconnected,
    SMTPTimeoutError,
)

Security = Literal["starttls", "tls", "none"]

IDLE_S = 30.0
MAX_PER_CONNECTION = 100
"""Servers commonly end a connection after some hundred messages."""
_TEXT_CHARACTERS = 200
_PERMANENT = 500
_SHUTTING_DOWN = 421


@dataclass(frozen=True, slots=True)
class SmtpServer:
    """How a server is reached.

    Attributes:
        security: `starttls` and `tls` refuse to go on without an encrypted and verified connection.
        ca: PEM certificates to trust in place of the system's.
        helo: the name with which this host greets; empty for its own.
        max_connections: connections at a time.
        timeout_s: time limit of each step: connection, greeting, command.
        begin_s: time limit of all steps before the email itself is sent, waiting for a free
            connection included.
    """

    host: str
    port: int
    security: Security = "starttls"
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ca: str | None = None
    helo: str = ""
    max_connections: int = 4
    timeout_s: float = 15.0
    begin_s: float = 30.0


class SmtpFault(Exception):  # noqa: N818 - a result of sending, which most callers expect
    """An email was not sent, or it is not known whether it was.

    Attributes:
        code: reason code in upper snake case.
        reason: one sentence for a person, without secrets.
        status_code: the server's code, if it gave one.
        is_permanent: whether another attempt would not help.
        is_unknown: whether the server may have accepted the email.
        is_of_server: whether the server or its credentials are at fault, so that no email could be
            sent.
        is_of_recipients: whether it happened while the recipients were named. Servers end a
            connection that names many wrong ones, and some ask the recipient's own server
            meanwhile: so it says nothing of other emails.
    """

    def __init__(
        self,
        code: str,
        reason: str,
        *,
        status_code: int | None = None,
        is_permanent: bool = False,
        is_unknown: bool = False,
        is_of_server: bool = False,
        is_of_recipients: bool = False,
    ) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason
        self.status_code = status_code
        self.is_permanent = is_permanent
        self.is_unknown = is_unknown
        self.is_of_server = is_of_server
        self.is_of_recipients = is_of_recipients


@dataclass(frozen=True, slots=True)
class Refused:
    """A recipient that the server did not take.

    Attributes:
        is_permanent: whether another attempt would not help (5yz).
    """

    status_code: int
    reason: str
    is_permanent: bool


@dataclass(frozen=True, slots=True)
class Sent:
    """What the server took responsibility for.

    Attributes:
        accepted: the recipients to whom it will deliver; never empty unless all were refused.
        refused: the others.
        reply: the server's reply, which often names its own id of the email.
    """

    accepted: tuple[str, ...]
    refused: dict[str, Refused]
    reply: str = ""


Connect = Callable[[str, int], Awaitable[socket.socket]]


@dataclass(slots=True)
class _Kept:
    client: SMTP
    sent: int = 0
    since_s: float = 0.0


class SmtpClient:
    """Sends over at most `max_connections` connections; one more email waits for a free one.

    Args:
        server: the server.
        connect: opens the socket to host and port, if an address has to be judged; without it the
            library resolves and connects.
    """

    def __init__(self, server: SmtpServer, *, connect: Connect | None = None) -> None:
        self._server = server
        self._connect = connect
        self._places = asyncio.Semaphore(server.max_connections)
        self._idle: list[_Kept] = []
        self._tls: ssl.SSLContext | None = None
        self.opened = 0

    async def send(self, sender: str, recipients: Sequence[str], data: bytes) -> Sent:
        """Send an email to those recipients, and say which of them the server took.

        Nothing is sent a second time. A connection that the server had closed while it was idle is
        replaced before the first command of an email.

        Raises:
            SmtpFault: no recipient can be said to have it.
        """
        deadline_s = asyncio.get_running_loop().time() + self._server.begin_s
        try:
            async with asyncio.timeout_at(deadline_s):
                await self._places.acquire()
        except TimeoutError:
            raise SmtpFault(
                "CONNECTIONS_BUSY", "all connections to the mail server are in use"
            ) from None
        try:
            return await self._send(sender, recipients, data, deadline_s)
        finally:
            self._places.release()

    async def close(self) -> None:
        """Close the idle connections."""
        idle, self._idle = self._idle, []
        await asyncio.gather(*(_quit(kept.client) for kept in idle))

    async def _send(
        self, sender: str, recipients: Sequence[str], data: bytes, deadline_s: float
    ) -> Sent:
        kept: _Kept | None = None
        try:
            try:
                async with asyncio.timeout_at(deadline_s):
                    kept = await self._take()
                    accepted, refused = await _begin(kept.client, sender, recipients)
            except TimeoutError:
                fault = _lost(SMTPTimeoutError("too many steps"))
                raise (fault if kept is None else _of_recipients(fault)) from None
            sent = Sent((), refused)
            if accepted:
                sent = await self._finish(kept.client, accepted, refused, data)
        except BaseException:
            if kept is not None:
                kept.client.close()
            raise
        kept.sent += 1
        self._keep(kept)
        return sent

    async def _finish(
        self, client: SMTP, accepted: Sequence[str], refused: dict[str, Refused], data: bytes
    ) -> Sent:
        try:
            reply = await client.data(data)
        except SMTPResponseException as failure:
            raise _answered(failure) from None
        except (SMTPServerDisconnected, SMTPTimeoutError):
            raise SmtpFault(
                "RESULT_UNKNOWN",
                "the connection to the mail server ended while it took the email",
                is_unknown=True,
            ) from None
        return Sent(tuple(accepted), refused, _shown(reply.message))

    async def _take(self) -> _Kept:
        now_s = time.monotonic()
        while self._idle:
            kept = self._idle.pop()
            if now_s - kept.since_s < IDLE_S and kept.client.is_connected:
                try:
                    await kept.client.rset()
                except (SMTPException, OSError):
                    kept.client.close()
                else:
                    return kept
            else:
                kept.client.close()
        return _Kept(await self._open())

    def _keep(self, kept: _Kept) -> None:
        if kept.sent >= MAX_PER_CONNECTION or not kept.client.is_connected:
            kept.client.close()
            return
        kept.since_s = time.monotonic()
        self._idle.append(kept)

    async def _open(self) -> SMTP:
        server = self._server
        if server.security != "none" and self._tls is None:
            # Loading the authorities takes 20 ms and reads files.
            self._tls = await asyncio.to_thread(ssl.create_default_context, cadata=server.ca)
        sock = None
        if self._connect is not None:
            sock = await self._connect(server.host, server.port)
        client = SMTP(
            hostname=server.host,
            port=None if sock else server.port,
            sock=sock,
            username=server.username,
            password=server.password,
            local_hostname=server.helo or socket.gethostname(),
            timeout=server.timeout_s,
            use_tls=server.security == "tls",
            start_tls=server.security == "starttls",
            tls_context=self._tls if server.security != "none" else None,
        )
        try:
            await client.connect()
        except BaseException as failure:
            client.close()
            if isinstance(failure, SMTPException | OSError):
                raise _not_opened(failure) from None
            raise
        self.opened += 1
        return client


async def _begin(
    client: SMTP, sender: str, recipients: Sequence[str]
) -> tuple[list[str], dict[str, Refused]]:
    """Name the sender and the recipients; which of them the server takes, and which not."""
    accepted: list[str] = []
    refused: dict[str, Refused] = {}
    try:
        await client.mail(sender)
    except SMTPResponseException as failure:
        raise _answered(failure) from None
    except SMTPException as failure:
        raise _lost(failure) from None
    for recipient in recipients:
        try:
            await client.rcpt(recipient)
        except SMTPRecipientRefused as failure:
            if failure.code == _SHUTTING_DOWN:
                raise _of_recipients(_answered(failure)) from None
            refused[recipient] = _refused(failure)
        except SMTPException as failure:
            raise _of_recipients(_lost(failure)) from None
        else:
            accepted.append(recipient)
    return accepted, refused


def _not_opened(failure: Exception) -> SmtpFault:
    """Why there is no connection; no text of the server, which may repeat the credentials."""
    status = failure.code if isinstance(failure, SMTPResponseException) else None
    if isinstance(failure, SMTPAuthenticationError):
        code, reason = "AUTHENTICATION_FAILED", "the mail server refused the credentials"
    elif isinstance(failure, ssl.SSLError) or isinstance(failure.__cause__, ssl.SSLError):
        code, reason = "TLS_FAILED", "the mail server's certificate or TLS was not accepted"
    elif isinstance(failure, SMTPTimeoutError | TimeoutError):
        code, reason = "CONNECT_TIMEOUT", "the mail server did not answer in time"
    elif isinstance(failure, SMTPConnectError | SMTPServerDisconnected | OSError):
        code, reason = "CONNECTION_FAILED", "the mail server could not be connected to"
    elif status is None:
        code, reason = "TLS_FAILED", "the mail server offers no STARTTLS, or no usable login"
    else:
        code, reason = f"SMTP_{status}", f"the mail server greeted with {status}"
    return SmtpFault(code, reason, status_code=status, is_of_server=True)


def _answered(failure: SMTPResponseException) -> SmtpFault:
    """The server's refusal of an email, or of its sender or content."""
    return SmtpFault(
        f"SMTP_{failure.code}",
        f"the mail server answered {failure.code} {_shown(failure.message)}".rstrip(),
        status_code=failure.code,
        is_permanent=failure.code >= _PERMANENT,
        is_of_server=failure.code == _SHUTTING_DOWN,
    )


def _lost(failure: Exception) -> SmtpFault:
    if isinstance(failure, SMTPTimeoutError):
        return SmtpFault("TIMEOUT", "the mail server did not answer in time", is_of_server=True)
    return SmtpFault("CONNECTION_LOST", "the mail server ended the connection", is_of_server=True)


def _of_recipients(fault: SmtpFault) -> SmtpFault:
    return SmtpFault(fault.code, fault.reason, status_code=fault.status_code, is_of_recipients=True)


def _refused(failure: SMTPRecipientRefused) -> Refused:
    return Refused(
        failure.code,
        f"{failure.code} {_shown(failure.message)}".rstrip(),
        is_permanent=failure.code >= _PERMANENT,
    )


def _shown(text: str) -> str:
    """The beginning of a server's text, on one line."""
    line = " ".join(text.split())
    return "".join(each for each in line if each.isprintable())[:_TEXT_CHARACTERS]


async def _quit(client: SMTP) -> None:
    try:
        async with asyncio.timeout(1.0):
            await client.quit()
    except (SMTPException, OSError):
        pass
    finally:
        client.close()


__all__ = ["Refused", "Security", "Sent", "SmtpClient", "SmtpFault", "SmtpServer"]
