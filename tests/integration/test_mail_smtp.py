"""Email over a real SMTP server: encryption, login, refusals, lost connections, reuse."""

import asyncio
from pathlib import Path

import pytest

from functions.domain.mail.smtp import Security, SmtpClient, SmtpFault, SmtpServer
from tests.support.certificates import contexts, self_signed
from tests.support.mail_server import PASSWORD, USER, MailServer, running_mail_server

SENDER, TO = "shop@example.com", "ann@example.net"
DATA = b"Subject: hello\r\n\r\nhello\r\n.\r\nend\r\n"


def plain(port: int, **more: object) -> SmtpServer:
    return SmtpServer("127.0.0.1", port, security="none", **more)  # type: ignore[arg-type]


async def fault_of(server: SmtpServer, recipients: tuple[str, ...] = (TO,)) -> SmtpFault:
    client = SmtpClient(server)
    with pytest.raises(SmtpFault) as found:
        await client.send(SENDER, recipients, DATA)
    await client.close()
    assert PASSWORD not in str(found.value)
    return found.value


async def test_the_bytes_arrive_as_they_are_and_the_reply_is_kept() -> None:
    async with running_mail_server() as server:
        client = SmtpClient(plain(server.port))
        sent = await client.send(SENDER, [TO], DATA)
        await client.close()

    [received] = server.received
    assert (received.sender, received.recipients) == (SENDER, (TO,))
    assert received.data == DATA
    assert sent.accepted == (TO,)
    assert sent.reply == "queued as 1"


@pytest.mark.parametrize("security", ["starttls", "tls"])
async def test_an_encrypted_connection_is_verified_before_the_login(
    security: Security, tmp_path: Path
) -> None:
    pem = self_signed("localhost", tmp_path)
    served, _ = contexts(pem)
    how = {"starttls": served} if security == "starttls" else {"tls": served}
    ca = pem.read_text().partition("-----END PRIVATE KEY-----")[2]
    async with running_mail_server(login=True, **how) as server:
        trusted = SmtpServer(
            "localhost",
            server.port,
            security,
            USER,
            PASSWORD,
            ca=ca,
        )
        client = SmtpClient(trusted)
        await client.send(SENDER, [TO], DATA)
        await client.close()
        unknown = SmtpServer("localhost", server.port, security, USER, PASSWORD)
        fault = await fault_of(unknown)

    [received] = server.received
    assert (received.user, received.is_encrypted) == (USER, True)
    assert (fault.code, fault.is_of_server, fault.is_unknown) == ("TLS_FAILED", True, False)


async def test_without_starttls_nothing_is_sent_in_clear() -> None:
    async with running_mail_server() as server:
        fault = await fault_of(SmtpServer("127.0.0.1", server.port, "starttls", USER, PASSWORD))

    assert fault.code == "TLS_FAILED"
    assert server.received == []


async def test_refused_credentials_are_the_account_s_fault() -> None:
    async with running_mail_server(login=True) as server:
        wrong = plain(server.port, username=USER, password="wrong")
        fault = await fault_of(wrong)

    assert (fault.code, fault.is_of_server) == ("AUTHENTICATION_FAILED", True)
    assert "wrong" not in fault.reason


async def test_some_recipients_are_refused_and_the_others_get_it() -> None:
    async with running_mail_server() as server:
        server.answers = {
            "gone@example.net": "550 5.1.1 no such user\x07",
            "full@example.net": "452 4.2.2 mailbox full",
        }
        client = SmtpClient(plain(server.port))
        sent = await client.send(SENDER, [TO, "gone@example.net", "full@example.net"], DATA)
        none = await client.send(SENDER, ["gone@example.net"], DATA)
        again = await client.send(SENDER, [TO], DATA)
        await client.close()

    assert sent.accepted == (TO,)
    assert sent.refused["gone@example.net"].is_permanent
    assert sent.refused["gone@example.net"].reason.startswith("550 5.1.1 no such user")
    assert not sent.refused["full@example.net"].is_permanent
    assert none.accepted == ()
    assert again.accepted == (TO,)
    assert [each.recipients for each in server.received] == [(TO,), (TO,)]
    assert server.connections == 1


@pytest.mark.parametrize(
    ("answer", "code", "is_permanent"),
    [("451 try later", "SMTP_451", False), ("554 spam", "SMTP_554", True)],
)
async def test_an_email_that_the_server_answers_is_known_not_to_be_sent(
    answer: str, code: str, *, is_permanent: bool
) -> None:
    async def refuse(_: MailServer) -> str:
        return answer

    async with running_mail_server() as server:
        server.on_data = refuse
        fault = await fault_of(plain(server.port))

    assert (fault.code, fault.is_permanent, fault.is_unknown) == (code, is_permanent, False)
    assert fault.is_of_server is False


@pytest.mark.parametrize(
    ("answer", "code"),
    [("421 too many wrong recipients", "SMTP_421"), ("", "CONNECTION_LOST"), (None, "TIMEOUT")],
)
async def test_what_recipients_may_cause_is_not_the_server_s_fault(
    answer: str | None, code: str
) -> None:
    async with running_mail_server() as server:
        server.on_recipient = answer
        fault = await fault_of(plain(server.port, timeout_s=0.3))

    assert (fault.code, fault.is_of_recipients) == (code, True)
    assert not any((fault.is_of_server, fault.is_permanent, fault.is_unknown))


async def test_a_connection_that_ends_during_the_email_leaves_the_result_unknown() -> None:
    async def cut(server: MailServer) -> str:
        server.cut()
        return ""

    async with running_mail_server() as server:
        server.on_data = cut
        fault = await fault_of(plain(server.port))

    assert (fault.code, fault.is_unknown) == ("RESULT_UNKNOWN", True)


async def test_a_server_that_says_nothing_or_is_not_there_is_named() -> None:
    async def hold(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await gone.wait()
        writer.close()

    gone = asyncio.Event()
    silent = await asyncio.start_server(hold, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    slow = await fault_of(plain(port, timeout_s=0.2))
    gone.set()
    silent.close()
    await silent.wait_closed()
    away = await fault_of(plain(port, timeout_s=2.0))

    assert (slow.code, slow.is_of_server) == ("CONNECT_TIMEOUT", True)
    assert (away.code, away.is_of_server) == ("CONNECTION_FAILED", True)


async def test_connections_are_bounded_reused_and_replaced_when_the_server_ended_them() -> None:
    together, most = 0, 0

    async def count(_: MailServer) -> str:
        nonlocal together, most
        together += 1
        most = max(most, together)
        await asyncio.sleep(0)
        together -= 1
        return ""

    async with running_mail_server() as server:
        server.on_data = count
        client = SmtpClient(plain(server.port, max_connections=3))
        await asyncio.gather(*(client.send(SENDER, [TO], DATA) for _ in range(20)))
        assert server.connections <= 3
        assert most <= 3
        server.cut()
        await client.send(SENDER, [TO], DATA)
        await client.close()

    assert len(server.received) == 21
