"""How a delivery proves to an endpoint who sends it: Basic, OAuth 2, client certificates."""

import asyncio
import base64
import gc
import json
import ssl
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from pydantic import SecretStr

from functions.domain.target_tls import TargetTls
from functions.outbound.endpoint import WebhookDestination
from functions.outbound.receipt import Receipt
from functions.outbound.webhook_sender import WebhookSender, WebhookSettings
from tests.support.certificates import HOUR, contexts, self_signed
from tests.support.hostile import HostileListener
from tests.support.receiver import Answer, Received, Receiver

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
CLIENT_SECRET = "s3cr3t of+client"

Post = Callable[..., Any]


@pytest.fixture
async def sender() -> AsyncIterator[WebhookSender]:
    opened = WebhookSender(
        WebhookSettings(allowed_networks="127.0.0.0/8, ::1/128", timeout_s=2.0, excerpt_bytes=0),
        ssl.create_default_context(),
    )
    yield opened
    await opened.aclose()


async def post(sender: WebhookSender, url: str, **config: object) -> Receipt:
    destination = WebhookDestination.model_validate({"url": url, "secret": SECRET, **config})
    return await sender.post(destination.endpoint, "message-1", b"{}")


class TokenServer(Receiver):
    """Gives the tokens `token-1`, `token-2` and so on."""

    def __init__(self, **told: object) -> None:
        super().__init__()
        self.told = told

    @property
    def token_url(self) -> str:
        return f"http://localhost:{self.port}/token"

    def answer_to(self, request: Received) -> Answer:
        del request
        number = len(self.requests)
        answer = {"access_token": f"token-{number}", "token_type": "Bearer", "expires_in": 3600}
        return Answer(body=json.dumps({**answer, **self.told}).encode())


class Guarded(Receiver):
    """Answers 401 unless the request has the token."""

    def __init__(self, token: str) -> None:
        super().__init__()
        self.token = token

    def answer_to(self, request: Received) -> Answer:
        is_known = request.headers.get("authorization") == f"Bearer {self.token}"
        return Answer(200 if is_known else 401)


def oauth2(token_url: str, **more: object) -> dict[str, object]:
    return {
        "type": "oauth2",
        "token_url": token_url,
        "client_id": "client:1",
        "client_secret": CLIENT_SECRET,
        **more,
    }


async def test_a_user_name_and_password_go_with_every_request(sender: WebhookSender) -> None:
    async with Receiver() as receiver:
        auth = {"type": "basic", "username": "Aladdin", "password": "open sesame"}
        await post(sender, receiver.url, auth=auth)
    [request] = receiver.requests
    # Of RFC 7617, section 2.
    assert request.headers["authorization"] == "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="
    assert request.headers["webhook-signature"].startswith("v1,")


async def test_one_token_serves_all_requests_until_it_ends(sender: WebhookSender) -> None:
    async with TokenServer() as tokens, Guarded("token-1") as receiver:
        auth = oauth2(tokens.token_url, scope="events.write", audience="hooks")
        receipts = await asyncio.gather(*(post(sender, receiver.url, auth=auth) for _ in range(20)))
        assert {receipt.outcome for receipt in receipts} == {"delivered"}
    [request] = tokens.requests
    form = parse_qs(request.body.decode())
    assert form == {
        "grant_type": ["client_credentials"],
        "scope": ["events.write"],
        "audience": ["hooks"],
    }
    # Both parts are form-encoded before they are joined. Source: RFC 6749, section 2.3.1.
    pair = base64.b64decode(request.headers["authorization"].removeprefix("Basic "))
    assert pair == b"client%3A1:s3cr3t%20of%2Bclient"


async def test_the_client_s_secret_can_stand_in_the_form(sender: WebhookSender) -> None:
    async with TokenServer() as tokens, Guarded("token-1") as receiver:
        auth = oauth2(tokens.token_url, client_authentication="body")
        assert (await post(sender, receiver.url, auth=auth)).outcome == "delivered"
    [request] = tokens.requests
    form = parse_qs(request.body.decode())
    assert (form["client_id"], form["client_secret"]) == (["client:1"], [CLIENT_SECRET])
    assert "authorization" not in request.headers


async def test_a_token_that_has_ended_is_replaced(sender: WebhookSender) -> None:
    async with TokenServer(expires_in=0) as tokens, Guarded("token-1") as receiver:
        auth = oauth2(tokens.token_url)
        assert (await post(sender, receiver.url, auth=auth)).outcome == "delivered"
        receiver.token = "token-2"
        async with asyncio.timeout(5):
            while len(tokens.requests) < 2:
                await asyncio.sleep(0.2)
                receipt = await post(sender, receiver.url, auth=auth)
    assert receipt.outcome == "delivered"


@pytest.mark.parametrize(
    "told", ["1" + "0" * 400, "1e999", "NaN", "-1", "null", '"3600"', '"soon"', "[]", "{}"]
)
async def test_a_token_is_used_whatever_is_said_of_its_end(
    sender: WebhookSender, told: str
) -> None:
    answer = Answer(body=b'{"access_token":"token-1","expires_in":%b}' % told.encode())
    async with Receiver(answer) as tokens, Guarded("token-1") as receiver:
        auth = oauth2(f"http://localhost:{tokens.port}/token")
        assert (await post(sender, receiver.url, auth=auth)).outcome == "delivered"


async def test_a_refused_token_is_renewed_once_and_not_for_every_job(sender: WebhookSender) -> None:
    async with TokenServer() as tokens, Guarded("token-1") as receiver:
        auth = oauth2(tokens.token_url)
        assert (await post(sender, receiver.url, auth=auth)).outcome == "delivered"
        receiver.token = "token-2"  # The endpoint has revoked the first one.
        assert (await post(sender, receiver.url, auth=auth)).outcome == "delivered"
        assert len(tokens.requests) == 2
        receiver.token = "never"
        for _ in range(3):
            receipt = await post(sender, receiver.url, auth=auth)
            assert (receipt.outcome, receipt.code) == ("failed", "HTTP_401")
    assert len(tokens.requests) == 2


@pytest.mark.parametrize(
    ("answer", "code", "told"),
    [
        (Answer(401, body=b'{"error":"invalid_client"}'), "TOKEN_REFUSED", "401 invalid_client"),
        (Answer(400, body=b'{"error":"<script>"}'), "TOKEN_REFUSED", "credentials: 400"),
        (Answer(503), "TOKEN_FAILED", "no token: 503"),
        (Answer(302, {"Location": "http://127.0.0.1/"}), "TOKEN_FAILED", "no token: 302"),
        (Answer(200, body=b"[" * 20_000), "TOKEN_FAILED", "200 without a bearer token"),
        (Answer(200, body=b'{"access_token":"a\\r\\nx: y"}'), "TOKEN_FAILED", "without a bearer"),
        (Answer(200, body=b'{"access_token":"a","token_type":"mac"}'), "TOKEN_FAILED", "bearer"),
        (Answer(200, body=b'{"access_token":"%s"}' % (b"a" * 9000)), "TOKEN_FAILED", "bearer"),
        (Answer(raw=b"220 mail\r\n\r\n"), "TOKEN_FAILED", "PROTOCOL_ERROR"),
    ],
)
async def test_a_token_endpoint_that_gives_none_is_named_and_not_asked_for_every_job(
    sender: WebhookSender, answer: Answer, code: str, told: str
) -> None:
    async with Receiver(answer) as tokens, Receiver() as receiver:
        auth = oauth2(f"http://localhost:{tokens.port}/token")
        receipts = [await post(sender, receiver.url, auth=auth) for _ in range(3)]
    assert {(receipt.outcome, receipt.code) for receipt in receipts} == {("failed", code)}
    assert told in receipts[0].reason
    # Nothing was connected to: that neither pauses the origin nor ends its pause.
    assert receipts[0].health_of_endpoint == "unconnected"
    assert CLIENT_SECRET not in repr(receipts)
    assert (len(tokens.requests), receiver.connections) == (1, 0)


async def test_a_token_endpoint_is_behind_the_same_guard_as_the_endpoints() -> None:
    async with Receiver() as receiver, TokenServer() as tokens:
        settings = WebhookSettings(allowed_networks=f"127.0.0.1:{receiver.port}")
        sender = WebhookSender(settings, ssl.create_default_context())
        receipt = await post(sender, receiver.url, auth=oauth2(tokens.token_url))
        await sender.aclose()
    assert (receipt.outcome, receipt.code) == ("refused", "TOKEN_URL_NOT_ALLOWED")
    assert (tokens.connections, receiver.connections) == (0, 0)


async def test_a_token_endpoint_that_hangs_ends_with_the_time_limit_of_the_attempt(
    sender: WebhookSender,
) -> None:
    async with Receiver(Answer(held=asyncio.Event())) as tokens, Receiver() as receiver:
        began_s = asyncio.get_running_loop().time()
        auth = oauth2(f"http://localhost:{tokens.port}/token")
        receipt = await post(sender, receiver.url, auth=auth)
        took_s = asyncio.get_running_loop().time() - began_s
    assert receipt.code == "TOKEN_FAILED"
    assert "TIMEOUT" in receipt.reason
    assert took_s < 15


async def test_a_token_that_fails_when_nobody_waits_any_more_is_no_error_of_the_event_loop(
    sender: WebhookSender,
) -> None:
    loop, told = asyncio.get_running_loop(), list[str]()
    loop.set_exception_handler(lambda _, error: told.append(error["message"]))
    held = asyncio.Event()
    async with Receiver(Answer(503, held=held)) as tokens:
        auth = oauth2(f"http://localhost:{tokens.port}/token")
        destination = WebhookDestination.model_validate(
            {"url": "http://localhost/", "secret": SECRET, "auth": auth}
        )
        posting = sender.post(destination.endpoint, "message-1", b"{}", loop.time() + 0.2)
        assert (await posting).reason.endswith("TIMEOUT")
        requests = list(sender._tokens._requests.values())
        held.set()
        await asyncio.wait(requests, timeout=10)
    assert [request.done() for request in requests] == [True]
    del requests, posting
    gc.collect()
    assert told == []


async def test_a_client_certificate_that_fails_when_nobody_waits_is_no_error_of_the_event_loop(
    sender: WebhookSender,
) -> None:
    loop, told = asyncio.get_running_loop(), list[str]()
    loop.set_exception_handler(lambda _, error: told.append(error["message"]))
    tls = TargetTls(SecretStr("no certificate"), None, "fingerprint", None)
    waiting = asyncio.create_task(sender._contexts.of(tls))
    await asyncio.sleep(0)
    waiting.cancel()
    making = list(sender._contexts._making.values())
    await asyncio.wait([waiting, *making], timeout=10)
    assert [one.done() for one in making] == [True]
    del waiting, making
    gc.collect()
    assert told == []


async def test_a_tenant_that_leaves_no_time_to_connect_is_no_sign_for_the_origin(
    sender: WebhookSender,
) -> None:
    async def hang(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with HostileListener(hang) as shared:
        config = {"url": f"https://localhost:{shared.port}/", "secret": SECRET}
        endpoint = WebhookDestination.model_validate(config).endpoint
        in_full = await sender.post(endpoint, "message-1", b"{}")
        # As of a route with a short `timeout_s`, or whose token endpoint has answered late.
        soon_s = asyncio.get_running_loop().time() + 0.1
        hurried = await sender.post(endpoint, "message-1", b"{}", soon_s)
    assert in_full.code == hurried.code == "CONNECT_TIMEOUT"
    assert in_full.health_of_endpoint == "unreachable"
    assert hurried.health_of_endpoint == "unconnected"


async def test_an_endpoint_gets_the_client_certificate_and_proves_itself_to_its_own_authority(
    sender: WebhookSender, tmp_path: Path
) -> None:
    server, client = self_signed("localhost", tmp_path), self_signed("client", tmp_path)
    served, _ = contexts(server)
    served.verify_mode = ssl.CERT_REQUIRED
    served.load_verify_locations(client)
    async with Receiver(tls=served) as receiver:
        own = {"authorities": server.read_text(), "client_certificate": client.read_text()}
        receipt = await post(sender, receiver.url, **own)
        assert receipt.outcome == "delivered", receipt
        without_certificate = await post(sender, receiver.url, authorities=own["authorities"])
        public_authorities = await post(
            sender, receiver.url, client_certificate=own["client_certificate"]
        )
    # With TLS 1.3 a server refuses a missing certificate after the handshake.
    assert without_certificate.code == "CONNECTION_LOST"
    assert public_authorities.code == "TLS_FAILED"
    assert len(receiver.requests) == 1


async def test_a_client_certificate_that_has_ended_is_not_used(
    sender: WebhookSender, tmp_path: Path
) -> None:
    old = self_signed("old", tmp_path, begins=-2 * HOUR, ends=timedelta(seconds=-1))
    async with Receiver(tls=contexts(self_signed("localhost", tmp_path))[0]) as receiver:
        receipt = await post(sender, receiver.url, client_certificate=old.read_text())
    assert (receipt.outcome, receipt.code) == ("failed", "CLIENT_CERTIFICATE_EXPIRED")
    assert receiver.connections == 0


async def test_certificates_of_one_tenant_are_no_sign_for_the_endpoints_of_another(
    tmp_path: Path,
) -> None:
    config = {"url": "https://hook.example/a", "secret": SECRET}
    own = {**config, "authorities": self_signed("a", tmp_path).read_text()}
    usual, apart = (WebhookDestination.model_validate(one).endpoint for one in (config, own))
    assert usual.origin == "https://hook.example:443"
    assert apart.origin.startswith("https://hook.example:443 ")
    assert usual.url == apart.url
