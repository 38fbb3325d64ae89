"""A host is killed between a provider's acceptance and the record: no message is sent twice."""

import asyncio
from pathlib import Path

import asyncpg
import orjson
import pytest

from runtime.broker.connection import Broker
from tests.fault.hosts import HostProcess
from tests.support.host import eventually
from tests.support.messaging import MANIFEST, SMALL, stored
from tests.support.receiver import Answer, Received
from tests.support.servers import NatsServer
from tests.support.twilio import SID, TOKEN, Twilio

pytestmark = pytest.mark.timeout(300)

NUMBERS = ("+436641234561", "+436641234562")


class Silent(Twilio):
    """Answers no attempt while `is_silent`; has accepted only the message to the first number."""

    def __init__(self) -> None:
        super().__init__()
        self.is_silent = True
        self.never = asyncio.Event()

    def answer_to(self, request: Received) -> Answer:
        if request.method != "POST" or not self.is_silent:
            return super().answer_to(request)
        if NUMBERS[0][1:] in request.body.decode():
            super().answer_to(request)
        return Answer(held=self.never)


async def test_a_killed_host_sends_no_message_twice_and_says_what_it_does_not_know(
    nats_server: NatsServer, broker: Broker, postgres_dsn: str, tmp_path: Path
) -> None:
    shipped = MANIFEST.read_text(encoding="utf-8")
    quick = tmp_path / "messaging.yaml"
    quick.write_text(
        shipped.replace("every: 10s", "every: 1s").replace(
            "      base_url:", "      look_up_after_s: 0\n      base_url:"
        ),
        encoding="utf-8",
    )
    async with Silent() as twilio:
        environment = SMALL | {
            "NATS_URL": nats_server.url,
            "DATABASE_URL": postgres_dsn,
            "TWILIO_ACCOUNT_SID": SID,
            "TWILIO_AUTH_TOKEN": TOKEN,
            "TWILIO_FROM": "+15005550006",
            "TWILIO_BASE_URL": twilio.base_url,
        }
        host = HostProcess("host", [quick], environment, tmp_path)
        await host.start()
        await host.wait_until_ready()
        for number in NUMBERS:
            form = {"message_id": f"m{number[-1]}", "to": number, "body": "hello"}
            await broker.publish("sms.send", orjson.dumps(form))
        await twilio.received(2)
        await host.kill()
        twilio.is_silent = False
        connection = await asyncpg.connect(postgres_dsn)
        try:
            rows = await connection.fetch("SELECT status FROM messages")
            assert [row["status"] for row in rows] == ["sending", "sending"]
            # As if the time of the attempts had passed.
            await connection.execute("UPDATE messages SET lease_until = now(), check_at = now()")
            await host.start()

            async def are_sent() -> bool:
                rows = await connection.fetch("SELECT status FROM messages")
                return [row["status"] for row in rows] == ["sent", "sent"]

            await eventually(are_sent, "two messages that are sent", 90)
        finally:
            await connection.close()
            await host.stop()
        assert sorted(one.to for one in twilio.stored) == list(NUMBERS)
        told = [orjson.loads(each) for each in await stored(broker, "SMS", "sms.status")]
        found = ["queued", "sending", "unknown", "sent"]
        again = ["queued", "sending", "unknown", "queued", "sending", "sent"]
        for name, expected in (("m1", found), ("m2", again)):
            of_one = [one for one in told if one["message_id"] == name]
            of_one.sort(key=lambda one: one["number"])
            assert [one["status"] for one in of_one] == expected
