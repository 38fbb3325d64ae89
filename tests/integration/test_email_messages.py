"""send_email on a real SMTP server: what is sent, to whom, and what becomes of the rest."""

import base64
from collections.abc import AsyncIterator
from typing import Any

import pytest

from functions.messages import send_email
from runtime import Reject, Retry
from runtime.broker.connection import Broker
from tests.support.mail_server import MailServer, running_mail_server
from tests.support.queue_worker import QueueWorker, running_queue

MAIL: dict[str, Any] = {"to": "ann@example.net", "subject": "Grüße", "text": "Hello\n"}


@pytest.fixture
async def server() -> AsyncIterator[MailServer]:
    async with running_mail_server() as running:
        yield running


@pytest.fixture
async def worker(
    broker: Broker, postgres_dsn: str, server: MailServer
) -> AsyncIterator[QueueWorker]:
    async with running_queue(
        broker,
        postgres_dsn,
        "email",
        send_email,
        "send_email",
        host="127.0.0.1",
        port=server.port,
        security="none",
        sender="shop@example.com",
        sender_name="The Shop",
    ) as running:
        yield running


async def test_an_email_is_sent_with_all_its_parts_under_an_id_of_ours(
    worker: QueueWorker, server: MailServer
) -> None:
    await worker.deliver(
        **MAIL | {"to": ["ann@example.net", "bob@example.net"]},
        cc="cy@example.net",
        bcc=["dan@example.net"],
        html="<p>Hello</p>",
        attachments=[
            {
                "filename": "a.csv",
                "content_type": "text/csv",
                "content": base64.b64encode(b"a,b\n").decode(),
            }
        ],
    )
    [received] = server.received
    message = received.parsed
    assert received.recipients == (
        "ann@example.net",
        "bob@example.net",
        "cy@example.net",
        "dan@example.net",
    )
    assert b"dan@example.net" not in received.data
    assert message["From"] == "The Shop <shop@example.com>"
    assert str(message["Message-ID"]).startswith("<m1.")
    assert [part.get_filename() for part in message.iter_attachments()] == ["a.csv"]
    row = await worker.row()
    assert (row["status"], row["provider"], row["provider_id"]) == (
        "sent",
        "default",
        "queued as 1",
    )


async def test_a_resend_is_the_same_email(worker: QueueWorker, server: MailServer) -> None:
    server.answers = {"ann@example.net": "451 greylisted"}
    with pytest.raises(Retry, match="RECIPIENTS_WAITING"):
        await worker.deliver(**MAIL, cc="bob@example.net")
    server.answers = {}
    await worker.deliver(**MAIL, cc="bob@example.net", attempt=2)
    first, second = server.received
    assert first.data == second.data
    assert (first.recipients, second.recipients) == (("bob@example.net",), ("ann@example.net",))
    row = await worker.row()
    assert (row["status"], row["attempts"], row["error_code"]) == ("sent", 2, None)


async def test_recipients_that_are_refused_for_good_are_told_and_not_asked_again(
    worker: QueueWorker, server: MailServer
) -> None:
    server.answers = {
        "gone@example.net": "550 5.1.1 no such user",
        "full@example.net": "452 mailbox full",
    }
    to = ["ann@example.net", "gone@example.net", "full@example.net"]
    with pytest.raises(Retry, match="1 of 3 recipients"):
        await worker.deliver(**MAIL | {"to": to})
    server.answers = {"gone@example.net": "250 OK"}
    await worker.deliver(**MAIL | {"to": to}, attempt=2)
    row = await worker.row()
    assert (row["status"], row["error_code"]) == ("sent", "SOME_RECIPIENTS_REFUSED")
    assert row["reason"] == "the mail server took it for 2 of 3 recipients"
    known = await worker.pool.fetch("SELECT address, outcome, reason FROM message_recipients")
    assert {each["address"]: each["outcome"] for each in known} == {
        "ann@example.net": "accepted",
        "full@example.net": "accepted",
        "gone@example.net": "refused",
    }
    assert "550 5.1.1 no such user" in {each["reason"] for each in known}
    assert [each.recipients for each in server.received] == [
        ("ann@example.net",),
        ("full@example.net",),
    ]


async def test_an_email_that_nobody_may_get_is_refused(
    worker: QueueWorker, server: MailServer
) -> None:
    server.answers = {"ann@example.net": "550 no such user"}
    with pytest.raises(Reject) as refused:
        await worker.deliver(**MAIL)
    assert refused.value.code == "RECIPIENTS_REFUSED"
    assert (await worker.row())["status"] == "refused"


@pytest.mark.parametrize(
    ("answer", "status", "code"),
    [("451 later", "queued", "SMTP_451"), ("554 spam", "refused", "SMTP_554")],
)
async def test_4xx_is_tried_again_and_5xx_is_not(
    worker: QueueWorker, server: MailServer, answer: str, status: str, code: str
) -> None:
    async def refuse(_: MailServer) -> str:
        return answer

    server.on_data = refuse
    with pytest.raises((Retry, Reject)):
        await worker.deliver(**MAIL)
    row = await worker.row()
    assert (row["status"], row["error_code"]) == (status, code)


async def test_a_connection_lost_while_the_server_takes_the_email_is_never_sent_again_unasked(
    worker: QueueWorker, server: MailServer
) -> None:
    async def cut(running: MailServer) -> str:
        running.cut()
        return ""

    server.on_data = cut
    await worker.deliver(**MAIL)
    server.on_data = None
    await worker.deliver(**MAIL)
    row = await worker.row()
    assert (row["status"], row["error_code"]) == ("unknown", "RESULT_UNKNOWN")
    assert len(server.received) == 1


async def test_a_sender_that_the_account_does_not_send_for_is_refused(
    worker: QueueWorker, server: MailServer
) -> None:
    with pytest.raises(Reject) as refused:
        await worker.deliver(**MAIL, sender="ceo@other.example")
    assert refused.value.code == "SENDER_NOT_ALLOWED"
    assert server.received == []


async def test_recipients_that_end_the_connection_use_up_attempts_and_pause_nobody_s_account(
    worker: QueueWorker, server: MailServer
) -> None:
    server.on_recipient = "421 too many wrong recipients"
    with pytest.raises(Retry, match="SMTP_421") as later:
        await worker.deliver(**MAIL)
    assert later.value.counts
    server.on_recipient = "250 OK"
    await worker.deliver(**MAIL, message_id="other", tenant_id="other")
    assert (await worker.row("other"))["status"] == "sent"


async def test_a_server_that_is_away_uses_up_no_attempt(worker: QueueWorker) -> None:
    await worker.pool.execute(
        "INSERT INTO provider_accounts (name, kind, config) VALUES ('away', 'email', "
        """'{"host": "127.0.0.1", "port": 1, "security": "none", "sender": "a@example.com"}')"""
    )
    with pytest.raises(Retry, match="CONNECTION_FAILED") as later:
        await worker.deliver(**MAIL)
    assert later.value.counts is False
    # The broken account is paused, and the next one sends.
    await worker.deliver(**MAIL)
    accounts = [attempt["provider"] for attempt in await worker.attempts()]
    assert accounts == ["away", "default"]
    assert (await worker.row())["status"] == "sent"
