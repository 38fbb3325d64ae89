"""One of two hosts is killed while they send: no email twice, every webhook, and nothing untold."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import asyncpg
import orjson
import pytest

from runtime.broker.connection import Broker
from runtime.context import Publication
from tests.fault.hosts import HostProcess
from tests.support.host import eventually
from tests.support.mail_server import MailServer, running_mail_server
from tests.support.messaging import MANIFEST, SMALL, make_streams
from tests.support.receiver import Receiver
from tests.support.servers import NatsServer

pytestmark = pytest.mark.timeout(300)

COUNT = 300


def campaign(hooks: Receiver) -> list[Publication]:
    """Emails and webhooks, each under an id of its own."""
    found = []
    for number in range(COUNT):
        ids = {"message_id": f"m{number}", "tenant_id": "acme"}
        mail = ids | {"to": "ann@example.net", "subject": f"n{number}", "text": "hello"}
        hook = {"message_id": f"h{number}", "tenant_id": "acme", "url": hooks.url}
        found.append(Publication("email.send", orjson.dumps(mail), f"m{number}"))
        found.append(Publication("webhooks.deliver", orjson.dumps(hook), f"h{number}"))
    return found


async def slowly(_: MailServer) -> str:
    await asyncio.sleep(0.02)
    return ""


async def test_of_a_killed_host_no_email_is_sent_twice_and_every_webhook_arrives(
    nats_server: NatsServer, broker: Broker, postgres_dsn: str, tmp_path: Path
) -> None:
    await make_streams(broker)
    quick = tmp_path / "messaging.yaml"
    text = MANIFEST.read_text(encoding="utf-8")
    quick.write_text(text.replace("every: 10s", "every: 1s"), encoding="utf-8")
    async with running_mail_server() as mail, Receiver() as hooks:
        mail.on_data = slowly
        environment = SMALL | {
            "NATS_URL": nats_server.url,
            "DATABASE_URL": postgres_dsn,
            "SMTP_HOST": "127.0.0.1",
            "SMTP_PORT": str(mail.port),
            "SMTP_SECURITY": "none",
            "SMTP_SENDER": "shop@example.com",
            "WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8",
        }
        hosts = [HostProcess(name, [quick], environment, tmp_path) for name in ("one", "two")]
        connection = await asyncpg.connect(postgres_dsn)
        try:
            for host in hosts:
                await host.start()
                await host.wait_until_ready()
            await broker.publish_many(campaign(hooks))
            await mail.take(COUNT // 4)
            await hosts[0].kill()
            rows = await _settled(connection)
        finally:
            await connection.close()
            for host in hosts[1:]:
                await host.stop()

        sent = Counter(str(each.parsed["Subject"]) for each in mail.received)
        emails = {name: status for name, status in rows.items() if name.startswith("m")}
        assert set(sent.values()) == {1}
        assert set(emails.values()) <= {"sent", "unknown"}
        for number in range(COUNT):
            # What is known to be sent was sent; what is unknown may have been.
            assert f"n{number}" in sent or emails[f"m{number}"] == "unknown"
        assert Counter(emails.values())["unknown"] <= 32
        assert {rows[f"h{number}"] for number in range(COUNT)} == {"delivered"}
        arrived = {each.headers["webhook-id"] for each in hooks.requests}
        assert arrived == {f"h{number}" for number in range(COUNT)}


async def _settled(connection: Any) -> dict[str, str]:
    """The statuses, when no message waits any more."""

    async def look() -> dict[str, str] | None:
        await connection.execute(
            "UPDATE messages SET lease_until = now(), check_at = now()"
            " WHERE status = 'sending' AND updated_at < now() - interval '8 s'"
        )
        rows = await connection.fetch("SELECT message_id, status FROM messages")
        statuses = {row["message_id"]: row["status"] for row in rows}
        is_done = len(statuses) == 2 * COUNT and not {"queued", "sending"} & set(statuses.values())
        return statuses if is_done else None

    return await eventually(look, "every message settled", 150) or {}
