"""The messages API: shipped manifests in a host, behind a gateway, with a provider's stand-in."""

import asyncio
import itertools
import json
import shlex
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import orjson
import pytest

from runtime import manifest
from runtime.broker.connection import Broker
from runtime.broker.micro import Answer
from runtime.host import Addresses, Host, HostOptions
from runtime.loader import load_all
from runtime.message import Message
from runtime.observe.metrics import Metrics
from tests.support.documentation import ROOT, read_blocks, read_commands
from tests.support.gateway import ADMIN, REGISTRATION_KEY, echo, run_endpoint, run_gateway
from tests.support.host import eventually
from tests.support.messaging import MANIFEST, SMALL, SMS, make_streams, stored
from tests.support.servers import NatsServer
from tests.support.twilio import SID, TOKEN, Twilio, error


@dataclass
class Api:
    """The API, with the keys of two tenants."""

    client: httpx.AsyncClient
    twilio: Twilio
    acme: dict[str, str]
    other: dict[str, str]

    async def ask(
        self, method: str, path: str, expected: int, headers: dict[str, str], /, **body: Any
    ) -> Any:
        answer = await self.client.request(method, path, json=body or None, headers=headers)
        assert answer.status_code == expected, answer.text
        return answer.json()

    async def until(self, message_id: str, status: str) -> dict[str, Any]:
        """The message, as soon as it has a status."""

        async def look() -> dict[str, Any] | None:
            answer = await self.client.get(f"/v1/messages/{message_id}", headers=self.acme)
            shown: dict[str, Any] = answer.json()
            return shown if shown["status"] == status else None

        return await eventually(look, f"{message_id} {status}") or {}


@pytest.fixture
async def api(nats_server: NatsServer, broker: Broker, postgres_dsn: str) -> AsyncIterator[Api]:
    await make_streams(broker)
    async with Twilio() as twilio:
        environment = SMALL | {
            "TWILIO_ACCOUNT_SID": SID,
            "TWILIO_AUTH_TOKEN": TOKEN,
            "TWILIO_FROM": "+15005550006",
            "TWILIO_BASE_URL": twilio.base_url,
        }
        files = [MANIFEST, MANIFEST.with_name("management.yaml")]
        declared = manifest.read(files, environment)
        options = HostOptions(registration_key=REGISTRATION_KEY)
        addresses = Addresses(nats_server.url, postgres_dsn)
        host = Host(declared, load_all(declared), addresses, Metrics("0.0.0"), options)
        await host.start()
        try:
            async with run_gateway(
                broker, token_cache_s=0, trusted_proxies="127.0.0.0/8"
            ) as gateway:
                api = Api(gateway.client, twilio, {}, {})
                for tenant, headers in (("acme", api.acme), ("other", api.other)):
                    await api.ask("POST", "/api/v1/tenants", 201, ADMIN, tenant_id=tenant)
                    path = f"/api/v1/tenants/{tenant}/keys"
                    made = await api.ask("POST", path, 201, ADMIN, name="app")
                    headers["Authorization"] = f"Bearer {made['key']}"
                yield api
        finally:
            await host.drain(10.0)


async def test_a_message_is_accepted_once_for_its_key_and_sent(api: Api, broker: Broker) -> None:
    marked = api.acme | {"Idempotency-Key": "order-17"}
    first = await api.ask("POST", "/v1/messages/sms", 202, marked, **SMS)
    assert (first["kind"], first["status"], first["tenant_id"]) == ("sms", "queued", "acme")
    assert await api.ask("POST", "/v1/messages/sms", 202, marked, **SMS) == first
    changed = SMS | {"body": "another"}
    refused = await api.ask("POST", "/v1/messages/sms", 422, marked, **changed)
    assert refused["code"] == "IDEMPOTENCY_KEY_REUSED"
    same_key = api.other | {"Idempotency-Key": "order-17"}
    theirs = await api.ask("POST", "/v1/messages/sms", 202, same_key, **changed)
    assert theirs["message_id"] != first["message_id"]

    shown = await api.until(first["message_id"], "sent")
    assert shown["content"] == SMS
    assert [each["outcome"] for each in shown["attempt_log"]] == ["sent"]
    assert [each["status"] for each in shown["transitions"]] == ["queued", "sending", "sent"]
    api.twilio.stored[0].status = "delivered"
    posts = [post.body for post in await _posts(api.twilio, 2)]
    assert len(posts) == 2
    told = [orjson.loads(each) for each in await stored(broker, "SMS", "sms.status")]
    of_first = [one for one in told if one["message_id"] == first["message_id"]]
    assert [one["number"] for one in of_first] == [1, 2, 3]

    # Nobody sees or changes what is another tenant's.
    path = f"/v1/messages/{first['message_id']}"
    for method, suffix in (("GET", ""), ("POST", "/resend")):
        hidden = await api.ask(method, path + suffix, 404, api.other)
        assert hidden["code"] == "MESSAGE_NOT_FOUND"
    listed = await api.ask("GET", "/v1/messages?kind=sms", 200, api.other)
    assert [one["message_id"] for one in listed["items"]] == [theirs["message_id"]]
    await api.ask("GET", "/v1/messages?tenant_id=acme", 403, api.other)
    await api.ask("POST", "/v1/messages/sms", 403, api.other, tenant_id="acme", **SMS)
    both = await api.ask("GET", "/v1/messages?tenant_id=acme&limit=1", 200, ADMIN)
    assert [one["message_id"] for one in both["items"]] == [first["message_id"]]


async def test_only_valid_keys_of_active_tenants_are_admitted(api: Api) -> None:
    assert (await api.ask("POST", "/v1/messages/sms", 401, {}, **SMS))["code"] == "UNAUTHORIZED"
    wrong = {"Authorization": "Bearer tk_guess"}
    assert (await api.ask("POST", "/v1/messages/sms", 403, wrong, **SMS))["code"] == "FORBIDDEN"
    # The admin's key needs the tenant's name.
    assert (await api.ask("POST", "/v1/messages/sms", 422, ADMIN, **SMS))["code"]
    await api.ask("POST", "/v1/messages/sms", 404, ADMIN, tenant_id="nobody", **SMS)
    await api.ask("POST", "/v1/messages/sms", 202, ADMIN, tenant_id="acme", **SMS)

    keys = await api.ask("GET", "/api/v1/tenants/acme/keys", 200, ADMIN)
    [key] = keys["items"]
    assert "key" not in key
    await api.ask("POST", f"/api/v1/tenants/other/keys/{key['key_id']}/revoke", 404, ADMIN)
    await api.ask("POST", f"/api/v1/tenants/acme/keys/{key['key_id']}/revoke", 200, ADMIN)
    await api.ask("GET", "/v1/messages", 403, api.acme)
    await api.ask("PATCH", "/api/v1/tenants/other", 200, ADMIN, status="SUSPENDED")
    await api.ask("GET", "/v1/messages", 403, api.other)
    past = {"expires_at": "2020-01-01T00:00:00Z"}
    made = await api.ask("POST", "/api/v1/tenants/acme/keys", 201, ADMIN, **past)
    await api.ask("GET", "/v1/messages", 403, {"Authorization": f"Bearer {made['key']}"})
    for _ in range(12):
        last = await api.client.get("/v1/messages", headers=wrong)
    assert (last.status_code, last.json()["code"]) == (429, "TOO_MANY_ATTEMPTS")


async def test_who_has_guessed_too_often_is_not_told_that_a_key_is_the_admins(api: Api) -> None:
    # The admin's key has come from this address before, and from the other one never.
    await api.ask("GET", "/v1/messages?tenant_id=acme", 200, ADMIN)
    elsewhere = {"X-Forwarded-For": "198.51.100.7"}
    for n in range(12):
        wrong = {**elsewhere, "Authorization": f"Bearer tk_guess{n}"}
        last = await api.client.get("/v1/messages?tenant_id=acme", headers=wrong)
    assert last.status_code == 429
    answer = await api.client.get("/v1/messages?tenant_id=acme", headers={**ADMIN, **elsewhere})
    assert (answer.status_code, answer.json()["code"]) == (429, "TOO_MANY_ATTEMPTS")
    await api.ask("GET", "/v1/messages?tenant_id=acme", 200, ADMIN)


async def test_a_tenant_with_many_requests_leaves_an_endpoint_to_the_others(
    api: Api, broker: Broker
) -> None:
    release = asyncio.Event()
    at_work: list[Message] = []

    async def work(message: Message) -> Answer:
        if orjson.loads(message.data)["tenant_id"] == "acme":
            at_work.append(message)
            await release.wait()
        return Answer(message.data)

    async with run_endpoint(broker, work, http__auth="tenant"):
        asked = [
            asyncio.create_task(api.client.post("/probe", json={}, headers=api.acme))
            for _ in range(100)
        ]
        refused = [await each for each in itertools.islice(asyncio.as_completed(asked), 4)]
        assert {answer.status_code for answer in refused} == {429}
        assert {answer.json()["code"] for answer in refused} == {"TOO_MANY_REQUESTS"}
        others = await api.client.post("/probe", json={}, headers=api.other)
        assert others.json() == {"tenant_id": "other"}
        assert len(at_work) == 4
        release.set()
        statuses = [(await each).status_code for each in asked]
        assert (statuses.count(200), statuses.count(429)) == (96, 4)


async def test_while_nobody_tells_whose_keys_are_shown_requests_are_answered_503(
    broker: Broker,
) -> None:
    endpoint = {"http__method": "GET", "http__path": "/v1/messages", "http__auth": "tenant"}
    async with run_gateway(broker) as gateway, run_endpoint(broker, echo, **endpoint):
        shown = {"Authorization": "Bearer tk_any"}
        away = await gateway.client.get("/v1/messages", headers=shown)
        assert (away.status_code, away.json()["code"]) == (503, "REGISTRY_UNAVAILABLE")
        assert away.headers["retry-after"] == "5"
        answer = await gateway.client.get("/v1/messages?tenant_id=a", headers=ADMIN)
        assert answer.json() == {"tenant_id": "a"}


async def test_a_request_that_no_provider_would_take_is_refused_at_once(api: Api) -> None:
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("sms", SMS | {"to": "06641234567"}),
        ("sms", SMS | {"body": "x" * 1601}),
        ("sms", SMS | {"body": "nul\x00"}),
        ("sms", SMS | {"media": "x"}),
        ("email", {"to": "a@b.example", "subject": "two\r\nBcc: c@d.example", "text": "x"}),
        ("email", {"to": "a@b.example", "subject": "no body"}),
        ("email", {"to": [f"a{n}@b.example" for n in range(51)], "subject": "s", "text": "x"}),
        ("email", {"to": "a@b.example", "subject": "s", "text": "x" * 64_001}),
        ("webhook", {"url": "ftp://a.example/", "data": {}}),
        ("webhook", {"url": "https://a.example/", "data": {"a": "x" * 9000}}),
    ]
    for kind, body in wrong:
        refused = await api.ask("POST", f"/v1/messages/{kind}", 422, api.acme, **body)
        assert "06641234567" not in str(refused)
    good = {"to": "a@b.example", "subject": "s", "html": "<p>x</p>"}
    await api.ask("POST", "/v1/messages/email", 202, api.acme, **good)
    hook = {"url": "https://a.example/hook", "type": "order.created", "data": {"id": 1}}
    await api.ask("POST", "/v1/messages/webhook", 202, api.acme, **hook)
    document = (await api.client.get("/openapi.json")).json()
    posted = document["paths"]["/v1/messages/sms"]["post"]
    assert posted["security"] == [{"tenantKey": []}, {"adminKey": []}]
    schema = posted["requestBody"]["content"]["application/json"]["schema"]
    assert sorted(schema["required"]) == ["body", "to"]
    assert {each["name"] for each in posted["parameters"]} == {"Idempotency-Key"}


async def test_a_program_publishes_on_the_queue_itself_in_the_form_of_its_own(
    api: Api, broker: Broker
) -> None:
    form = {"messageId": "m-77", "tenantId": "acme", "to": SMS["to"], "message": "hello"}
    await broker.publish("sms.send", orjson.dumps(form))
    shown = await api.until("m-77", "sent")
    assert shown["content"] == {"to": SMS["to"], "body": "hello"}


async def test_a_person_sends_a_refused_message_again_and_marks_an_unknown_one(api: Api) -> None:
    api.twilio.refusals = [error(400, 21211)]
    made = await api.ask("POST", "/v1/messages/sms", 202, api.acme, **SMS)
    path = f"/v1/messages/{made['message_id']}"
    await api.until(made["message_id"], "refused")
    await api.ask("POST", f"{path}/resend", 200, api.acme)
    await api.until(made["message_id"], "sent")
    conflict = await api.ask("POST", f"{path}/resend", 409, api.acme)
    assert conflict["code"] == "MESSAGE_STATUS"
    assert "sent" in conflict["detail"]
    await api.ask("POST", f"{path}/mark", 409, api.acme, status="failed")

    api.twilio.refusals = [error(504, 0)]
    made = await api.ask("POST", "/v1/messages/sms", 202, api.acme, **SMS)
    path = f"/v1/messages/{made['message_id']}"
    await api.until(made["message_id"], "unknown")
    unknown = await api.ask("GET", "/api/v1/messages/unknown?kind=sms&limit=1", 200, ADMIN)
    assert [one["message_id"] for one in unknown["items"]] == [made["message_id"]]
    assert unknown["items"][0]["next_look_up_at"]
    await api.ask("GET", "/api/v1/messages/unknown", 403, api.acme)
    marked = await api.ask("POST", f"{path}/mark", 200, api.acme, status="failed", reason="no")
    assert (marked["status"], marked["error_code"], marked["reason"]) == (
        "failed",
        "MARKED_FAILED",
        "no",
    )


async def _posts(twilio: Twilio, count: int) -> list[Any]:
    async def look() -> list[Any] | None:
        return twilio.posts if len(twilio.posts) >= count else None

    return await eventually(look, f"{count} messages at the provider") or []


async def test_the_examples_of_the_documentation_work(api: Api, broker: Broker) -> None:
    blocks = read_blocks(ROOT / "docs" / "messages.md")
    [asked] = [block.text for block in blocks if block.text.startswith("POST /api/v1/tenants")]
    line, _, body = asked.partition("\n")
    method, path = line.split()
    made = await api.ask(method, path, 201, ADMIN, **json.loads(body))

    [curl] = [block.text for block in blocks if block.language == "bash"]
    words = shlex.split(curl.replace("\\\n", " ").replace("$TENANT_KEY", made["key"]))
    [url] = [word for word in words if word.startswith("http://")]
    headers = dict(
        word.split(": ", 1) for option, word in itertools.pairwise(words) if option == "-H"
    )
    content = json.loads(words[words.index("-d") + 1])
    accepted = await api.ask("POST", httpx.URL(url).path, 202, headers, **content)
    [answer] = [block.text for block in blocks if block.text.startswith("HTTP/1.1 202")]
    assert json.loads(answer.split("\n")[1]).keys() == accepted.keys()
    await api.until(accepted["message_id"], "sent")

    [(command, _)] = read_commands(ROOT / "docs" / "messages.md")
    _, _, subject, payload = shlex.split(command)
    await broker.publish(subject, payload.encode())
    await api.until("m-17", "sent")
    [shown] = [json.loads(block.text) for block in blocks if block.language == "json"]
    told = [orjson.loads(each) for each in await stored(broker, "SMS", "sms.status")]
    [last] = [one for one in told if one["message_id"] == "m-17" and one["status"] == "sent"]
    assert last.keys() == shown.keys()
    assert last["number"] == shown["number"]
