"""The guard on the connected address, names and TLS, with real sockets and name servers."""

import asyncio
import ssl
from pathlib import Path

import pytest

from functions.outbound.transport.client import HttpClient
from functions.outbound.transport.connector import Origin
from functions.outbound.transport.faults import DestinationRefused, TlsFailed
from runtime import AddressPolicy, parse_networks
from tests.support.certificates import contexts, self_signed
from tests.support.name_server import NameServer
from tests.support.receiver import Receiver

LOOPBACK = "127.0.0.0/8, ::1/128"
REQUEST = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}"


async def post(
    networks: str,
    host: str,
    port: int,
    *,
    tls: ssl.SSLContext | None = None,
    names: NameServer | None = None,
) -> int:
    client = HttpClient(
        AddressPolicy(parse_networks(networks)),
        timeout_s=5.0,
        excerpt_bytes=100,
        nameservers=[names.address] if names else [],
    )
    try:
        return (await client.send(Origin(host, port, tls), REQUEST)).status
    finally:
        await client.close()


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f.0.0.1",
        "0177.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:7f00:1",
        "0",
    ],
)
async def test_every_spelling_of_loopback_is_refused_without_a_connection(host: str) -> None:
    async with Receiver() as receiver:
        with pytest.raises(DestinationRefused):
            await post("", host, receiver.port)
    assert receiver.connections == 0


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "2130706433", "::ffff:127.0.0.1"])
async def test_an_opened_network_is_reached_by_every_spelling(host: str) -> None:
    async with Receiver() as receiver:
        assert await post(LOOPBACK, host, receiver.port) == 200


async def test_a_port_of_this_machine_can_be_opened_without_the_others() -> None:
    async with Receiver() as opened, Receiver() as closed:
        networks = f"127.0.0.1:{opened.port}"
        assert await post(networks, "127.0.0.1", opened.port) == 200
        with pytest.raises(DestinationRefused):
            await post(networks, "127.0.0.1", closed.port)
    assert closed.connections == 0


async def test_a_proxy_in_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Receiver() as proxy, Receiver() as receiver:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
        monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{proxy.port}")
        assert await post(LOOPBACK, "localhost", receiver.port) == 200
    assert proxy.connections == 0


async def test_a_name_is_resolved_once_so_that_it_cannot_turn_to_another_address() -> None:
    async with Receiver() as receiver, NameServer() as names:
        names.answers["rebinding.example"] = [["127.0.0.2"], ["127.0.0.1"]]
        with pytest.raises(DestinationRefused):
            await post("127.0.0.1/32", "rebinding.example", receiver.port, names=names)
    assert names.asked == ["rebinding.example"]
    assert receiver.connections == 0


async def test_only_the_allowed_ones_of_a_names_addresses_are_connected_to() -> None:
    async with Receiver() as receiver, NameServer() as names:
        names.answers["mixed.example"] = [["10.0.0.1", "169.254.169.254", "127.0.0.1"]]
        assert await post("127.0.0.1/32", "mixed.example", receiver.port, names=names) == 200


async def test_an_address_that_does_not_answer_gives_way_to_the_next() -> None:
    async with Receiver() as receiver, NameServer() as names:
        names.answers["two.example"] = [["127.0.0.9", "127.0.0.1"]]
        assert await post(LOOPBACK, "two.example", receiver.port, names=names) == 200


async def test_the_certificate_is_checked_against_the_name(tmp_path: Path) -> None:
    served, trusted = contexts(self_signed("hook.example", tmp_path))
    async with Receiver(tls=served) as receiver, NameServer() as names:
        names.answers["hook.example"] = names.answers["other.example"] = [["127.0.0.1"]]
        port = receiver.port
        assert await post(LOOPBACK, "hook.example", port, tls=trusted, names=names) == 200
        with pytest.raises(TlsFailed):
            await post(LOOPBACK, "other.example", port, tls=trusted, names=names)


async def test_an_unknown_authority_is_not_trusted(tmp_path: Path) -> None:
    served, _ = contexts(self_signed("hook.example", tmp_path))
    async with Receiver(tls=served) as receiver, NameServer() as names:
        names.answers["hook.example"] = [["127.0.0.1"]]
        tls = ssl.create_default_context()
        with pytest.raises(TlsFailed):
            await post(LOOPBACK, "hook.example", receiver.port, tls=tls, names=names)


async def test_a_port_that_does_not_speak_tls_is_a_fault_of_tls() -> None:
    def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(TlsFailed):
            await post(LOOPBACK, "127.0.0.1", port, tls=ssl.create_default_context())
