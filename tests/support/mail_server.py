"""A real SMTP server (aiosmtpd) in the loop of the test, with answers that the test decides."""

import asyncio
import ssl
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

USER, PASSWORD = "mailer", "correct horse"


@dataclass(frozen=True)
class Received:
    """An email that the server took."""

    sender: str
    recipients: tuple[str, ...]
    data: bytes
    user: str | None
    is_encrypted: bool

    @property
    def parsed(self) -> EmailMessage:
        message = message_from_bytes(self.data, policy=policy.SMTP)
        assert isinstance(message, EmailMessage)
        return message


@dataclass
class MailServer:
    """The handler of the server.

    Attributes:
        answers: the answer to RCPT by address; without one the recipient is taken.
        on_recipient: the answer to every RCPT; empty: the connection ends; None: no answer.
        on_data: called instead of taking an email, and gives the answer to it.
        connections: how many clients have connected.
        arrived: set when an email has been taken.
    """

    port: int = 0
    received: list[Received] = field(default_factory=list)
    answers: dict[str, str] = field(default_factory=dict)
    sender_answer: str | None = None
    on_recipient: str | None = "250 OK"
    on_data: Callable[["MailServer"], Awaitable[str]] | None = None
    connections: int = 0
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    transports: list[Any] = field(default_factory=list)

    async def handle_MAIL(  # noqa: N802 - aiosmtpd's names
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if self.sender_answer:
            return self.sender_answer
        envelope.mail_from = address
        return "250 OK"

    async def handle_RCPT(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if answer := self.answers.get(address):
            return answer
        if self.on_recipient is None:
            await asyncio.Event().wait()
        if not self.on_recipient:
            self.cut()
            return "421 gone"
        if self.on_recipient.startswith("250"):
            envelope.rcpt_tos.append(address)
        return self.on_recipient

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        assert server.transport is not None
        assert isinstance(envelope.content, bytes)
        if self.on_data is not None and (answer := await self.on_data(self)):
            return answer
        auth = session.auth_data
        user = auth.login.decode() if isinstance(auth, LoginPassword) else None
        self.received.append(
            Received(
                str(envelope.mail_from),
                tuple(envelope.rcpt_tos),
                envelope.content,
                user,
                server.transport.get_extra_info("ssl_object") is not None,
            )
        )
        self.arrived.set()
        return f"250 queued as {len(self.received)}"

    async def take(self, count: int) -> list[Received]:
        """Wait until so many emails have arrived."""
        async with asyncio.timeout(120):
            while len(self.received) < count:
                self.arrived.clear()
                await self.arrived.wait()
        return self.received

    def cut(self) -> None:
        """End all connections."""
        for transport in self.transports:
            transport.abort()
        self.transports.clear()


def _authenticate(
    server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any
) -> AuthResult:
    right = isinstance(data, LoginPassword) and data.password == PASSWORD.encode()
    return AuthResult(success=right, handled=False, auth_data=data)


@asynccontextmanager
async def running_mail_server(
    *,
    starttls: ssl.SSLContext | None = None,
    tls: ssl.SSLContext | None = None,
    login: bool = False,
) -> AsyncIterator[MailServer]:
    """A server on a free port of loopback.

    Args:
        starttls: demands STARTTLS with this context.
        tls: speaks TLS from the first byte.
        login: demands the login of `USER`.
    """
    handler = MailServer()
    loop = asyncio.get_running_loop()

    def make() -> SMTP:
        with warnings.catch_warnings():
            # It does not know that the connection is encrypted from its first byte.
            warnings.simplefilter("ignore")
            protocol = SMTP(
                handler,
                hostname="mail.example",
                tls_context=starttls,
                require_starttls=starttls is not None,
                authenticator=_authenticate if login else None,
                auth_required=login,
                auth_require_tls=starttls is not None,
                loop=loop,
            )
        made = protocol.connection_made

        def connection_made(transport: Any) -> None:
            handler.transports.append(transport)
            handler.connections += 1
            made(transport)

        protocol.connection_made = connection_made  # type: ignore[method-assign] # counts them
        return protocol

    server = await loop.create_server(make, "127.0.0.1", 0, ssl=tls)
    handler.port = server.sockets[0].getsockname()[1]
    try:
        yield handler
    finally:
        handler.cut()
        server.close()
        await server.wait_closed()
