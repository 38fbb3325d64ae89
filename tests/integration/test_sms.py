"""Text messages by Twilio's API: requests, errors, lost answers, look-ups."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

import pytest
from pydantic import SecretStr

from functions.messages.account_health import AccountHealth
from functions.messages.delivery import Sender
from functions.messages.sms import SmsSettings, send_sms, settle_sms, start, stop
from runtime import Context, Event, Reject, Retry
from runtime.broker.connection import Broker
from runtime.resource.http import open_http
from tests.support.messaging import SMS, Worker, running_worker
from tests.support.receiver import Answer
from tests.support.twilio import SID, TOKEN, Twilio, error

TO = SMS["to"]


@dataclass
class Texting:
    """The functions of text messages, with a stand-in for their provider."""

    worker: Worker
    twilio: Twilio

    async def send(self, message_id: str = "m1", *, attempt: int = 1, **fields: Any) -> None:
        async def handle(event: Event[Any], ctx: Context[Sender], _: Sender) -> None:
            await send_sms(event, ctx)

        await self.worker.deliver(message_id=message_id, attempt=attempt, handle=handle, **fields)

    def forget_failures(self) -> None:
        """Let the account work, whatever it has answered."""
        self.worker.scope.state.provider._routed._health = AccountHealth()

    async def settle(self) -> None:
        """Look at everything now that is to be looked at ever."""
        await self.worker.pool.execute(
            "UPDATE messages SET check_at = now() - interval '1 s' WHERE check_at IS NOT NULL"
        )
        await settle_sms(self.worker.context)

    async def status(self, message_id: str = "m1") -> tuple[str, str | None]:
        row = await self.worker.row(message_id)
        return row["status"], row["error_code"]


@pytest.fixture
async def texting(broker: Broker, postgres_dsn: str) -> AsyncIterator[Texting]:
    async with (
        Twilio() as twilio,
        running_worker(broker, postgres_dsn) as worker,
        open_http() as http,
    ):
        worker.scope.resources = {"postgres": worker.pool, "http": http}
        worker.scope.settings = SmsSettings(
            account_sid=SID,
            auth_token=SecretStr(TOKEN),
            sender="+15005550006",
            base_url=twilio.base_url,
            call_s=1.0,
            senders="*",
        )
        worker.scope.state = await start(worker.context)
        yield Texting(worker, twilio)
        await stop(worker.context)


async def test_a_message_is_posted_as_a_form_and_its_arrival_is_asked_for(texting: Texting) -> None:
    await texting.send()
    [post] = texting.twilio.posts
    assert post.path == f"/2010-04-01/Accounts/{SID}/Messages.json"
    assert parse_qs(post.body.decode()) == {
        "To": [TO],
        "From": ["+15005550006"],
        "Body": [SMS["body"]],
    }
    row = await texting.worker.row()
    assert (row["status"], row["provider"]) == ("sent", SID)
    assert row["provider_id"] == texting.twilio.stored[0].sid
    await texting.settle()
    assert await texting.status() == ("sent", None)
    texting.twilio.stored[0].status = "delivered"
    await texting.settle()
    assert await texting.status() == ("delivered", None)
    told = [one["status"] for one in await texting.worker.told()]
    assert told == ["queued", "sending", "sent", "delivered"]
    # Another message by a service, which the provider gives up.
    await texting.send("m2", sender="MG" + "a" * 32)
    assert b"MessagingServiceSid=MG" in texting.twilio.posts[1].body
    texting.twilio.stored[1].status, texting.twilio.stored[1].error_code = "undelivered", 30003
    await texting.settle()
    assert await texting.status("m2") == ("failed", "TWILIO_30003")


async def test_errors_of_the_message_are_final_and_errors_of_the_account_are_not(
    texting: Texting,
) -> None:
    refused = [(400, 21211), (400, 21610), (400, 21614), (400, 21408)]
    for number, (status, code) in enumerate(refused):
        texting.twilio.refusals = [error(status, code)]
        with pytest.raises(Reject) as final:
            await texting.send(f"r{number}")
        assert final.value.code == f"TWILIO_{code}"
    assert await texting.status("r0") == ("refused", "TWILIO_21211")
    busy = [error(429, 20429, **{"Retry-After": "7"}), error(401, 20003), error(400, 21611)]
    for number, answer in enumerate(busy):
        texting.forget_failures()
        texting.twilio.refusals = [answer]
        with pytest.raises(Retry) as later:
            await texting.send(f"b{number}")
        assert later.value.counts is False
        # Wrong credentials pause the account, and another one may send at once.
        assert later.value.delay_s == (7.0, 0.5, 60.0)[number]
    texting.forget_failures()
    texting.twilio.refusals = [Answer(500, body=b"oops"), Answer(503)]
    for _ in range(2):
        with pytest.raises(Retry) as failed:
            await texting.send("f1")
        assert failed.value.counts is True
    await texting.send("f1")
    assert (await texting.worker.row("f1"))["attempts"] == 3
    assert len(texting.twilio.stored) == 1


async def test_an_answer_that_is_lost_is_found_by_the_look_up_and_the_message_is_sent_once(
    texting: Texting,
) -> None:
    # The connection ends after the message was accepted; a gateway says that it knows nothing;
    # the answer is none.
    texting.twilio.lost = [Answer(raw=b""), Answer(504), Answer(201, body=b"<html>")]
    for number in range(3):
        await texting.send(f"m{number}", body=f"text {number}")
        assert (await texting.status(f"m{number}"))[0] == "unknown"
    await texting.settle()
    assert len(texting.twilio.posts) == 3
    for number, stored in enumerate(texting.twilio.stored):
        row = await texting.worker.row(f"m{number}")
        assert (row["status"], row["provider_id"]) == ("sent", stored.sid)


async def test_a_message_that_the_provider_certainly_has_not_is_queued_again(
    texting: Texting,
) -> None:
    texting.twilio.add(TO, SMS["body"], age_s=3600)
    texting.twilio.add(TO, "an answer", direction="inbound")
    texting.twilio.refusals = [Answer(502)]
    await texting.send()
    await texting.settle()
    row = await texting.worker.row()
    assert (row["status"], row["error_code"]) == ("queued", "NOT_ACCEPTED")
    assert row["stream_sequence"] is not None
    await texting.send()
    assert (await texting.status())[0] == "sent"
    assert len(texting.twilio.posts) == 2


async def test_a_look_up_that_is_not_sure_leaves_the_message_to_a_person(texting: Texting) -> None:
    other = texting.twilio.add(TO, "another text that nobody knows")
    texting.twilio.refusals = [Answer(502)]
    await texting.send()
    await texting.settle()
    assert (await texting.status())[0] == "unknown"
    texting.twilio.stored.remove(other)
    # Two unknown messages of one text, and one of them was accepted: it may be either.
    texting.twilio.refusals = [Answer(502)]
    await texting.send("m2")
    texting.twilio.add(TO, SMS["body"])
    await texting.settle()
    assert [await texting.status("m1"), await texting.status("m2")] == [
        ("unknown", "HTTP_502"),
        ("unknown", "HTTP_502"),
    ]
    await texting.worker.pool.execute("UPDATE messages SET checks = 99")
    await texting.settle()
    assert (await texting.worker.row())["check_at"] is None


async def test_two_lost_messages_of_one_text_each_find_their_own(texting: Texting) -> None:
    texting.twilio.lost = [Answer(504), Answer(504)]
    await asyncio.gather(texting.send("m1"), texting.send("m2"))
    await texting.settle()
    rows = [await texting.worker.row(name) for name in ("m1", "m2")]
    assert [row["status"] for row in rows] == ["sent", "sent"]
    assert {row["provider_id"] for row in rows} == {one.sid for one in texting.twilio.stored}


async def test_a_look_up_reads_further_pages_and_survives_a_provider_that_is_away(
    texting: Texting,
) -> None:
    texting.twilio.lost = [Answer(504)]
    await texting.send()
    for number in range(3):
        texting.twilio.add(TO, f"later {number}")
    texting.twilio.page_size = 2
    texting.twilio.stored[0].status = "delivered"
    await texting.settle()
    assert (await texting.status())[0] == "delivered"
    texting.twilio.refusals = [Answer(504)]
    await texting.send("m2")
    client = await texting.worker.scope.state.provider._routed.client_of(SID)
    client.client._timeout_s = 0.0001
    await texting.settle()
    row = await texting.worker.row("m2")
    assert (row["status"], row["checks"]) == ("unknown", 1)


async def test_nothing_of_the_account_or_the_text_is_in_log_rows_or_errors(
    texting: Texting, capsys: pytest.CaptureFixture[str]
) -> None:
    texting.twilio.refusals = [error(400, 21211), Answer(504)]
    with pytest.raises(Reject) as refused:
        await texting.send("m1")
    await texting.send("m2")
    await texting.settle()
    shown = str(capsys.readouterr()) + str(refused.value) + str(await texting.worker.attempts())
    shown += str(await texting.worker.told())
    assert TOKEN not in shown
    assert SMS["body"] not in shown
    assert TOKEN not in repr(texting.worker.scope.state)


async def test_without_an_account_messages_wait(texting: Texting) -> None:
    await stop(texting.worker.context)
    texting.worker.scope.settings = SmsSettings()
    texting.worker.scope.state = await start(texting.worker.context)
    with pytest.raises(Retry, match="TWILIO_ACCOUNT_SID") as waiting:
        await texting.send()
    assert waiting.value.counts is False
    assert texting.twilio.posts == []
