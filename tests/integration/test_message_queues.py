"""Email and webhooks through the shipped manifests: two hosts, a gateway, real receivers."""

import itertools
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import orjson
import pytest

from runtime import manifest
from runtime.broker.connection import Broker
from runtime.context import Publication
from runtime.host import Addresses, Host, HostOptions
from runtime.loader import load_all
from runtime.observe.metrics import Metrics
from tests.support.documentation import ROOT
from tests.support.gateway import ADMIN, REGISTRATION_KEY, run_gateway
from tests.support.host import eventually
from tests.support.mail_server import MailServer, running_mail_server
from tests.support.messaging import MANIFEST, SMALL, make_streams, stored
from tests.support.receiver import Answer, Receiver
from tests.support.servers import NatsServer

KEY = "k" * 32
MAIL: dict[str, Any] = {"to": "ann@example.net", "subject": "Hello", "text": "Hello"}
BLOCK = re.compile(r"^```http\n(\w+) (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass
class Api:
    """The API, with what the messages arrive at."""

    client: httpx.AsyncClient
    broker: Broker
    mail: MailServer
    hooks: Receiver
    tenant: dict[str, str]

    async def ask(
        self, method: str, path: str, expected: int, headers: dict[str, str], /, **body: Any
    ) -> Any:
        answer = await self.client.request(method, path, json=body or None, headers=headers)
        assert answer.status_code == expected, answer.text
        return answer.json()

    async def send(self, kind: str, **body: Any) -> str:
        """The id of an accepted message."""
        made = await self.ask("POST", f"/v1/messages/{kind}", 202, self.tenant, **body)
        message_id: str = made["message_id"]
        return message_id

    async def until(self, message_id: str, **wanted: Any) -> dict[str, Any]:
        """The message, as soon as its fields are these."""

        async def look() -> dict[str, Any] | None:
            answer = await self.client.get(f"/v1/messages/{message_id}", headers=self.tenant)
            shown: dict[str, Any] = answer.json()
            is_it = answer.status_code == 200 and all(
                shown[name] == value for name, value in wanted.items()
            )
            return shown if is_it else None

        return await eventually(look, f"{message_id} {wanted}", 30) or {}


@pytest.fixture
async def api(nats_server: NatsServer, broker: Broker, postgres_dsn: str) -> AsyncIterator[Api]:
    await make_streams(broker)
    async with running_mail_server() as mail, Receiver() as hooks, AsyncExitStack() as hosts:
        environment = SMALL | {
            "SMTP_HOST": "127.0.0.1",
            "SMTP_PORT": str(mail.port),
            "SMTP_SECURITY": "none",
            "SMTP_SENDER": "shop@example.com",
            "SECRETS_KEYS": KEY,
            "WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8",
        }
        files = [MANIFEST, MANIFEST.with_name("management.yaml")]
        declared = manifest.read(files, environment)
        addresses = Addresses(nats_server.url, postgres_dsn)
        options = HostOptions(registration_key=REGISTRATION_KEY)
        for _ in range(2):
            host = Host(declared, load_all(declared), addresses, Metrics("0.0.0"), options)
            await host.start()
            hosts.push_async_callback(host.drain, 10.0)
        async with run_gateway(broker, token_cache_s=0) as gateway:
            api = Api(gateway.client, broker, mail, hooks, {})
            await api.ask("POST", "/api/v1/tenants", 201, ADMIN, tenant_id="acme")
            made = await api.ask("POST", "/api/v1/tenants/acme/keys", 201, ADMIN, name="app")
            api.tenant["Authorization"] = f"Bearer {made['key']}"
            yield api


async def test_messages_go_their_ways_and_wait_without_using_up_attempts(api: Api) -> None:
    # Email and webhook, each accepted by HTTP.
    mail = await api.send("email", **MAIL, attachments=[{"filename": "a.txt", "content": "aGk="}])
    hook = await api.send("webhook", url=api.hooks.url, type="order.created", data={"order": 17})
    shown = await api.until(mail, status="sent")
    assert shown["provider"] == "default"
    [received] = await api.mail.take(1)
    assert str(received.parsed["Message-ID"]).startswith(f"<{mail}.")
    await api.until(hook, status="delivered")
    [request] = await api.hooks.received(1)
    assert (request.headers["webhook-id"], orjson.loads(request.body)["data"]) == (
        hook,
        {"order": 17},
    )
    told = [orjson.loads(each) for each in await stored(api.broker, "EMAIL", "email.status")]
    assert [each["status"] for each in told] == ["queued", "sending", "sent"]

    # The seed's own command, with its own names of the fields.
    await api.broker.publish(
        "email.send", orjson.dumps({"emailId": "e-1", "tenantId": "acme"} | MAIL), msg_id=None
    )
    await api.until("e-1", status="sent")

    # A tenant's own account, which a change reaches at once on both hosts.
    account = {"name": "acme-mail", "kind": "email", "tenant_id": "acme"}
    config = {"host": "127.0.0.1", "port": 1, "security": "none", "sender": "own@example.com"}
    shown = await api.ask(
        "POST",
        "/api/v1/message-accounts",
        201,
        ADMIN,
        **account,
        config=config | {"username": "u", "password": "p"},
    )
    assert shown["config"]["password"] == "***"
    away = await api.send("email", **MAIL)
    shown = await api.until(away, status="queued", attempts=1)
    [attempt] = shown["attempt_log"]
    assert (attempt["outcome"], attempt["error_code"]) == ("busy", "CONNECTION_FAILED")
    await api.ask("DELETE", "/api/v1/message-accounts/acme-mail", 200, ADMIN)

    # Quiet hours that end soon: the message waits, and its first attempt is the only one.
    end = datetime.now(UTC) + timedelta(seconds=6)
    window = {"starts": f"{end - timedelta(hours=1):%H:%M:%S}", "ends": f"{end:%H:%M:%S}"}
    quiet = {"tenant_id": "acme", "kind": "webhook", "time_zone": "UTC"} | window
    await api.ask("POST", "/api/v1/quiet-hours", 201, ADMIN, **quiet)
    shown = await _first_that_waits(api, priority="high")
    assert shown["attempts"] == 1
    assert datetime.fromisoformat(shown["sent_at"]) >= end.replace(microsecond=0)

    # A long wait says why.
    quiet["ends"] = f"{end + timedelta(hours=2):%H:%M}"
    await api.ask("POST", "/api/v1/quiet-hours", 201, ADMIN, **quiet)
    shown = await _first_that_waits(api)
    assert (shown["status"], shown["error_code"]) == ("queued", "QUIET_HOURS")
    assert shown["reason"].startswith("quiet hours of the recipient until 20")
    assert shown["attempts"] == 0


async def _first_that_waits(api: Api, **more: Any) -> dict[str, Any]:
    """A published webhook that was not sent at once: the hosts hear of a change a moment later."""
    for number in itertools.count():
        hook = {"deliveryId": f"d-{number}-{len(more)}", "tenantId": "acme", "url": api.hooks.url}
        began_at = datetime.now(UTC)
        await api.broker.publish("webhooks.deliver", orjson.dumps(hook | more), msg_id=None)
        shown = await api.until(hook["deliveryId"])
        while shown["status"] in {"queued", "sending"} and shown["error_code"] is None:
            shown = await api.until(hook["deliveryId"])
        if shown["sent_at"] is None:
            return shown
        if datetime.fromisoformat(shown["sent_at"]) - began_at > timedelta(seconds=1):
            return shown
    raise AssertionError


async def test_a_webhook_that_was_given_up_is_delivered_by_webhooks_retry(api: Api) -> None:
    api.hooks.answers = [Answer(410), Answer(200)]
    hook = {"deliveryId": "d-2", "tenantId": "acme", "url": api.hooks.url, "payload": {"n": 1}}
    await api.broker.publish("webhooks.deliver", orjson.dumps(hook), msg_id=None)
    await api.until("d-2", status="refused")

    await api.broker.publish("webhooks.retry", orjson.dumps(hook), msg_id=None)
    shown = await api.until("d-2", status="delivered")
    assert [each["status"] for each in shown["transitions"]] == [
        *("queued", "sending", "refused"),
        *("queued", "sending", "delivered"),
    ]


async def test_the_page_s_requests_are_accepted(api: Api) -> None:
    page = (ROOT / "docs" / "messages.md").read_text(encoding="utf-8")
    made = [
        (method, path, await api.client.request(method, path, content=body, headers=_JSON))
        for method, path, body in BLOCK.findall(page)
        if not path.endswith("/keys")
    ]

    assert {path for _, path, _ in made} == {
        "/api/v1/message-accounts",
        "/api/v1/quiet-hours",
        "/api/v1/tenants/acme/message-rates/sms",
    }
    for method, path, answer in made:
        assert answer.status_code == (200 if method == "PUT" else 201), (path, answer.text)
    listed = await api.ask("GET", "/api/v1/message-accounts?limit=2", 200, ADMIN)
    assert [each["name"] for each in listed["items"]] == ["acme-mail", "acme-webhooks"]
    assert listed["next_cursor"]
    openapi = await api.ask("GET", "/openapi.json", 200, {})
    assert "/api/v1/quiet-hours/{quiet_hours_id}" in openapi["paths"]
    changed = await api.ask(
        "PATCH", "/api/v1/message-accounts/acme-mail", 200, ADMIN, is_enabled=False
    )
    assert changed["is_enabled"] is False


_JSON = ADMIN | {"Content-Type": "application/json"}


async def test_an_urgent_email_does_not_wait_behind_a_campaign(api: Api) -> None:
    campaign = [
        Publication("email.send", orjson.dumps(_bulk(number)), f"bulk-{number}")
        for number in range(200)
    ]
    await api.broker.publish_many(campaign)
    await api.mail.take(20)
    before = len(api.mail.received)
    urgent = {"emailId": "urgent", "tenantId": "acme", "priority": "high"} | MAIL
    await api.broker.publish("email.send", orjson.dumps(urgent), msg_id="urgent")
    received = await api.mail.take(201)

    ids = [str(each.parsed["Message-ID"]) for each in received]
    [place] = [number for number, each in enumerate(ids) if each.startswith("<urgent.")]
    # At most the calls that run already, 32 on each host, and a few that begin with it.
    assert place - before < 100
    assert len(set(ids)) == 201


def _bulk(number: int) -> dict[str, Any]:
    return {"emailId": f"b-{number}", "tenantId": "acme", "priority": "bulk"} | MAIL
