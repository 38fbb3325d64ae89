"""The guard on the connected address, and TLS by name, with real sockets."""

import asyncio
import socket
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpcore
import httpx
import pytest

from functions.route_delivery.addresses import AddressPolicy, parse_networks
from functions.route_delivery.http import DestinationRefused, WebhookClient
from functions.route_delivery.webhook import describe
from tests.support.certificates import contexts, self_signed
from tests.support.receiver import Receiver

LOOPBACK = "127.0.0.0/8, ::1/128"


def client(networks: str = "", tls: ssl.SSLContext | None = None) -> WebhookClient:
    policy = AddressPolicy(parse_networks(networks))
    return WebhookClient(policy, timeout_s=5.0, excerpt_bytes=100, tls=tls)


async def post(sender: WebhookClient, url: str) -> int:
    try:
        return (await sender.post(httpx.URL(url), {}, b"{}")).status
    finally:
        await sender.aclose()


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f.0.0.1",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "0",
    ],
)
async def test_every_spelling_of_loopback_is_refused_without_a_connection(host: str) -> None:
    async with Receiver() as receiver:
        with pytest.raises(DestinationRefused):
            await post(client(), f"http://{host}:{receiver.port}/")
    assert receiver.connections == 0


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "2130706433", "[::ffff:127.0.0.1]"])
async def test_an_opened_network_is_reached_by_every_spelling(host: str) -> None:
    async with Receiver() as receiver:
        assert await post(client(LOOPBACK), f"http://{host}:{receiver.port}/") == 200


async def test_a_proxy_in_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Receiver() as proxy, Receiver() as receiver:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
        monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{proxy.port}")
        assert await post(client(LOOPBACK), receiver.url) == 200
    assert proxy.connections == 0


def resolve_to(monkeypatch: pytest.MonkeyPatch, *answers: Sequence[str]) -> list[str]:
    """Have the loop's resolver return these answers in turn; returns the list of names resolved."""
    asked: list[str] = []
    turns = iter(answers)

    async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port)) for a in next(turns)]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    return asked


async def test_a_name_is_resolved_once_so_that_it_cannot_turn_to_another_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with Receiver() as receiver:
        asked = resolve_to(monkeypatch, ["127.0.0.2"], ["127.0.0.1"])
        with pytest.raises(DestinationRefused):
            await post(client("127.0.0.1/32"), f"http://rebinding.example:{receiver.port}/")
    assert asked == ["rebinding.example"]
    assert receiver.connections == 0


async def test_only_the_allowed_ones_of_a_names_addresses_are_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with Receiver() as receiver:
        resolve_to(monkeypatch, ["10.0.0.1", "169.254.169.254", "127.0.0.1"])
        url = f"http://mixed.example:{receiver.port}/"
        assert await post(client("127.0.0.1/32"), url) == 200
    assert receiver.requests[0].headers["host"] == f"mixed.example:{receiver.port}"


async def test_an_address_that_does_not_answer_gives_way_to_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with Receiver() as receiver:
        resolve_to(monkeypatch, ["127.0.0.9", "127.0.0.1"])
        assert await post(client(LOOPBACK), f"http://two.example:{receiver.port}/") == 200


async def test_the_certificate_is_checked_against_the_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    served, trusted = contexts(self_signed("hook.example", tmp_path))
    async with Receiver(tls=served) as receiver:
        resolve_to(monkeypatch, ["127.0.0.1"], ["127.0.0.1"])
        right = f"https://hook.example:{receiver.port}/"
        assert await post(client(LOOPBACK, trusted), right) == 200
        with pytest.raises(httpcore.ConnectError) as refused:
            await post(client(LOOPBACK, trusted), f"https://other.example:{receiver.port}/")
    assert describe(refused.value)[0] == "TLS_FAILED"


async def test_an_unknown_authority_is_not_trusted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    served, _ = contexts(self_signed("hook.example", tmp_path))
    async with Receiver(tls=served) as receiver:
        resolve_to(monkeypatch, ["127.0.0.1"])
        with pytest.raises(httpcore.ConnectError) as refused:
            await post(client(LOOPBACK), f"https://hook.example:{receiver.port}/")
    assert describe(refused.value)[0] == "TLS_FAILED"
