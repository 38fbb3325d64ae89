"""The counterpart of `email`: an SMTP server."""

import asyncio
from email import message_from_bytes
from email.policy import default
from types import TracebackType
from typing import Any, Self

from aiosmtpd.smtp import SMTP, Envelope, Session

from tests.support.route_types.counterpart import Arrived, Counterpart, Scene


class MailCounterpart(Counterpart):
    """Keeps what it is sent, and answers as a test tells it.

    Attributes:
        mails: the mails that it accepted.
        answer: to the text of a mail.
        refused_recipients: the answer to each of these recipients.
    """

    type_name = "email"
    module = "functions.route_delivery.email"
    secrets = ("smtp-p4ssword",)
    network = False
    wrong = (
        {"to": []},
        {"to": ["a@example.org\r\nBcc: b@example.org"]},
        {"to": ["nobody"]},
        {"to": ["a@example.org"] * 21},
        {"subject": "a\r\nBcc: b@example.org"},
        {"text": "{payload.a"},
        {"sender": "other@example.org"},
    )

    def __init__(self) -> None:
        self.mails: list[Envelope] = []
        self.answer = "250 OK"
        self.refused_recipients: dict[str, str] = {}
        self._came = asyncio.Condition()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: SMTP(self, hostname="mail.test", loop=loop, enable_SMTPUTF8=True),
            "127.0.0.1",
            0,
        )
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.close()

    def config(self) -> dict[str, Any]:
        return {"to": ["a@example.org", "b@example.org"], "subject": "{payload}"}

    def at(self, port: int) -> tuple[dict[str, Any], dict[str, Any]]:
        return {}, self.server_settings(port)

    def server_settings(self, port: int | None = None) -> dict[str, Any]:
        """Settings of the function that lead to a port, by default this server's."""
        return {
            "host": "127.0.0.1",
            "port": port or self.port,
            "security": "none",
            "sender": "alerts@example.com",
        }

    async def arrived(self, count: int) -> list[Arrived]:
        async with asyncio.timeout(60), self._came:
            await self._came.wait_for(lambda: len(self.mails) >= count)
        found = []
        for mail in self.mails:
            assert isinstance(mail.content, bytes)
            parsed = message_from_bytes(mail.content, policy=default)
            found.append(Arrived(parsed["Message-ID"], parsed.get_content()))
        return found

    def last(self) -> str:
        """The last mail, head and body."""
        content = self.mails[-1].content
        assert isinstance(content, bytes)
        return content.decode()

    async def refused(self) -> Scene:
        self.answer = "554 refused as spam"
        return Scene("SMTP_554")

    async def failed(self) -> Scene:
        self.answer = "451 try again"
        return Scene("SMTP_451")

    async def later(self) -> Scene:
        return Scene("RATE_LIMITED", settings={"per_tenant_per_hour": 1}, waits_s=3600.0)

    # aiosmtpd defines the signatures.
    async def handle_RCPT(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        """Answer for a recipient."""
        del server, session, options
        if refusal := self.refused_recipients.get(address):
            return refusal
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        """Keep the mail."""
        del server, session
        if self.answer.startswith("250"):
            self.mails.append(envelope)
            async with self._came:
                self._came.notify_all()
        return self.answer
