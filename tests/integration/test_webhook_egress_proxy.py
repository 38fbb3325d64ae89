"""Deliveries through the egress proxy of an installation, with a real proxy."""

import base64
import socket
import ssl
from dataclasses import replace
from pathlib import Path

import pytest
import uvloop

from functions.outbound.endpoint import WebhookDestination
from functions.outbound.receipt import Receipt
from functions.outbound.transport.client import HttpClient
from functions.outbound.transport.connector import Origin
from functions.outbound.transport.faults import ProxyFailed
from functions.outbound.transport.proxy import Proxy, parse_proxy
from functions.outbound.webhook_sender import WebhookSender, WebhookSettings
from runtime import AddressPolicy
from tests.support.certificates import contexts, self_signed
from tests.support.connect_proxy import ConnectProxy
from tests.support.name_server import NameServer
from tests.support.receiver import Receiver

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
PUBLIC = "93.184.215.14"
"""An address that the proxy is asked for; what it connects to is on loopback."""


async def post(
    proxy: str, url: str, *, names: NameServer | None = None, tls: ssl.SSLContext | None = None
) -> Receipt:
    settings = WebhookSettings(
        proxy=proxy, nameservers=names.address if names else "", timeout_s=2.0
    )
    sender = WebhookSender(settings, tls or ssl.create_default_context())
    try:
        endpoint = WebhookDestination.model_validate({"url": url, "secret": SECRET}).endpoint
        return await sender.post(endpoint, "message-1", b"{}")
    finally:
        await sender.aclose()


async def send_all(proxy: Proxy, origin: Origin, count: int) -> list[int]:
    """The statuses of requests, one after another."""
    client = HttpClient(AddressPolicy(), timeout_s=2.0, excerpt_bytes=10, proxy=proxy)
    try:
        request = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}"
        return [(await client.send(origin, request)).status for _ in range(count)]
    finally:
        await client.close()


async def test_a_request_goes_through_the_proxy_to_an_address_that_was_judged_here() -> None:
    async with Receiver() as receiver, ConnectProxy(receiver.port) as proxy, NameServer() as names:
        names.answers["hook.example"] = [["10.0.0.1", PUBLIC]]
        told = f"http://user:p%40ss@localhost:{proxy.port}"
        names.answers["localhost"] = [["127.0.0.1"]]
        receipt = await post(told, "http://hook.example/a", names=names)
    assert receipt.outcome == "delivered"
    [head] = proxy.asked
    assert head.startswith(f"CONNECT {PUBLIC}:80 HTTP/1.1\r\n")
    credentials = base64.b64encode(b"user:p@ss").decode()
    assert f"proxy-authorization: Basic {credentials}\r\n" in head
    [request] = receiver.requests
    assert request.headers["host"] == "hook.example"
    assert "proxy-authorization" not in request.headers


async def test_tls_of_an_endpoint_goes_through_the_proxy_to_the_endpoint(tmp_path: Path) -> None:
    served, trusted = contexts(self_signed("hook.example", tmp_path))
    async with (
        Receiver(tls=served) as receiver,
        ConnectProxy(receiver.port) as proxy,
        NameServer() as names,
    ):
        names.answers["hook.example"] = names.answers["other.example"] = [[PUBLIC]]
        told = f"http://127.0.0.1:{proxy.port}"
        known = await post(told, "https://hook.example/", names=names, tls=trusted)
        other = await post(told, "https://other.example/", names=names, tls=trusted)
    assert known.outcome == "delivered"
    assert other.code == "TLS_FAILED"


def test_the_proxy_itself_can_be_reached_by_tls_on_the_loop_that_hosts_run_on(
    tmp_path: Path,
) -> None:
    proxy_pem, hook_pem = (self_signed(name, tmp_path) for name in ("127.0.0.77", "hook.example"))

    async def scenario() -> None:
        served, trusted = contexts(hook_pem)
        async with (
            Receiver(tls=served) as receiver,
            ConnectProxy(receiver.port, contexts(proxy_pem)[0]) as proxy,
        ):
            unknown = parse_proxy(f"https://127.0.0.1:{proxy.port}")
            assert unknown is not None
            own_authority = contexts(proxy_pem)[1]
            own_authority.check_hostname = trusted.check_hostname = False
            origin = Origin(PUBLIC, 443, trusted)
            with pytest.raises(ProxyFailed, match="certificate"):
                await send_all(unknown, origin, 1)
            assert await send_all(replace(unknown, tls=own_authority), origin, 2) == [200, 200]
            assert (proxy.connections, receiver.connections) == (1, 1)

    uvloop.run(scenario())


@pytest.mark.parametrize("host", ["127.0.0.1", "10.0.0.1", "[::1]", "2130706433"])
async def test_the_guard_judges_before_the_proxy_is_asked(host: str) -> None:
    async with Receiver() as receiver, ConnectProxy(receiver.port) as proxy:
        receipt = await post(f"http://127.0.0.1:{proxy.port}", f"http://{host}/")
    assert (receipt.outcome, receipt.code) == ("refused", "DESTINATION_NOT_ALLOWED")
    assert (proxy.connections, receiver.connections) == (0, 0)


@pytest.mark.parametrize(
    ("answer", "outcome", "code", "told"),
    [
        (b"HTTP/1.1 407 No\r\n\r\n", "skipped", "PROXY_FAILED", "answered 407"),
        (b"HTTP/1.1 403 No\r\n\r\n", "skipped", "PROXY_FAILED", "answered 403"),
        (b"220 mail\r\n\r\n", "skipped", "PROXY_FAILED", "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\n\r\nHTTP", "skipped", "PROXY_FAILED", "bytes after its answer"),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 4000, "skipped", "PROXY_FAILED", "without end"),
        (b"", "skipped", "PROXY_FAILED", "closed the connection"),
        (b"HTTP/1.1 502 No\r\n\r\n", "failed", "PROXY_CONNECT_FAILED", "answered 502"),
        (b"HTTP/1.1 504 No\r\n\r\n", "failed", "PROXY_CONNECT_FAILED", "answered 504"),
    ],
)
async def test_what_the_proxy_says_is_told_apart_from_what_an_endpoint_says(
    answer: bytes, outcome: str, code: str, told: str
) -> None:
    async with Receiver() as receiver, ConnectProxy(receiver.port) as proxy:
        proxy.answer = answer
        receipt = await post(f"http://127.0.0.1:{proxy.port}", f"http://{PUBLIC}/")
    assert (receipt.outcome, receipt.code) == (outcome, code)
    assert told in receipt.reason
    # An installation's defect says nothing about the endpoint, and uses up no attempt.
    assert receipt.health_of_endpoint == ("unknown" if outcome == "skipped" else "unreachable")
    assert receiver.connections == 0


async def test_a_proxy_that_is_not_there_uses_up_no_attempt() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        receipt = await post(f"http://127.0.0.1:{unused.getsockname()[1]}", f"http://{PUBLIC}/")
    assert (receipt.outcome, receipt.code) == ("skipped", "PROXY_FAILED")
    assert receipt.retry_after_s == 30
    assert "127.0.0.1" not in receipt.reason


@pytest.mark.parametrize("text", ["proxy:3128", "socks5://proxy:1080", "http://", "http://p/path"])
def test_only_the_address_of_an_http_proxy_is_taken(text: str) -> None:
    with pytest.raises(ValueError, match="a proxy must be"):
        WebhookSettings(proxy=text)


def test_no_text_shows_the_password_of_the_proxy() -> None:
    settings = WebhookSettings(proxy="http://user:geheim@proxy:3128")
    proxy = parse_proxy(settings.proxy.get_secret_value())
    assert "geheim" not in repr(settings)
    assert "Basic" not in repr(proxy)
    assert parse_proxy("") is None
