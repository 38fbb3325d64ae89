"""`ctx.http`: an httpx client on aiohttp's connections, against a real HTTP server."""

import asyncio
import gzip
from collections.abc import AsyncIterator

import httpx
import pytest

from runtime import AddressPolicy, Reject, parse_networks
from runtime.loader import Function, load
from runtime.manifest.model import FunctionSpec, HttpClientSpec, ScheduleBindingSpec
from runtime.resource.http import open_http
from runtime.resource.shared import SharedResources
from tests.support.certificates import contexts, self_signed
from tests.support.hostile import HostileReceiver
from tests.support.receiver import Answer, Receiver


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with open_http() as client:
        yield client


async def test_a_request_arrives_as_httpx_made_it(http: httpx.AsyncClient) -> None:
    async with Receiver(Answer(201, {"X-A": "1"}, b'{"ok":true}')) as receiver:
        answer = await http.post(receiver.url, json={"a": 1}, headers={"X-Token": "t"})
    [request] = receiver.requests
    assert (request.method, request.path, request.body) == ("POST", "/hook?a=b", b'{"a":1}')
    assert request.headers["x-token"] == "t"
    assert request.headers["user-agent"] == "nats-function-runtime"
    assert request.headers["content-type"] == "application/json"
    assert (answer.status_code, answer.headers["x-a"], answer.json()) == (201, "1", {"ok": True})
    assert answer.reason_phrase == "Because"


async def test_connections_are_used_again(http: httpx.AsyncClient) -> None:
    async with Receiver() as receiver:
        for _ in range(5):
            await http.get(receiver.url)
    assert (len(receiver.requests), receiver.connections) == (5, 1)


async def test_a_body_is_decompressed_by_httpx(http: httpx.AsyncClient) -> None:
    body = gzip.compress(b"hello")
    async with Receiver(Answer(200, {"Content-Encoding": "gzip"}, body)) as receiver:
        assert (await http.get(receiver.url)).text == "hello"


async def test_a_body_can_be_streamed_both_ways(http: httpx.AsyncClient) -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b"ab"
        yield b"cd"

    async with Receiver(Answer(body=b"x" * 100_000)) as receiver:
        headers = {"Content-Length": "4"}
        async with http.stream("PUT", receiver.url, content=parts(), headers=headers) as answer:
            received = [chunk async for chunk in answer.aiter_bytes()]
    assert receiver.requests[0].body == b"abcd"
    assert len(b"".join(received)) == 100_000


async def test_redirects_cookies_and_proxies_are_not_followed_or_kept(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Receiver() as other:
        monkeypatch.setenv("HTTP_PROXY", other.url)
        moved = Answer(302, {"Location": other.url, "Set-Cookie": "a=b"})
        async with Receiver(moved) as receiver:
            assert (await http.get(receiver.url)).status_code == 302
    assert other.connections == 0


async def test_each_failure_is_the_error_that_httpx_has_for_it(http: httpx.AsyncClient) -> None:
    async with Receiver() as receiver:
        closed = receiver.url
    with pytest.raises(httpx.ConnectError):
        await http.get(closed)
    with pytest.raises(httpx.ConnectError):
        await http.get("http://nowhere.invalid/")
    async with Receiver(Answer(raw=b"220 mail\r\n\r\n")) as receiver:
        with pytest.raises(httpx.RemoteProtocolError):
            await http.get(receiver.url)
    async with Receiver(Answer(raw=b"")) as receiver:
        with pytest.raises(httpx.RemoteProtocolError):
            await http.get(receiver.url)
    cut = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nab"
    async with Receiver(Answer(raw=cut)) as receiver:
        with pytest.raises(httpx.RemoteProtocolError):
            await http.get(receiver.url)
    async with Receiver(Answer(held=asyncio.Event())) as receiver:
        with pytest.raises(httpx.ReadTimeout):
            await http.get(receiver.url, timeout=0.1)
    with pytest.raises(httpx.UnsupportedProtocol):
        await http.get("ftp://localhost/")


async def test_bytes_after_an_answer_do_not_become_the_next_one(http: httpx.AsyncClient) -> None:
    async def behave(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        real = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nreal"
        writer.write(real + real.replace(b"real", b"fake"))
        await writer.drain()

    async with HostileReceiver(behave) as receiver:
        for _ in range(3):
            headers = {"Content-Length": "0"}
            assert (await http.get(receiver.url, headers=headers)).text == "real"


async def test_an_unknown_authority_is_not_trusted(
    http: httpx.AsyncClient, tmp_path_factory: pytest.TempPathFactory
) -> None:
    served, _ = contexts(self_signed("localhost", tmp_path_factory.mktemp("tls")))
    async with Receiver(tls=served) as receiver:
        with pytest.raises(httpx.ConnectError):
            await http.get(receiver.url)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::ffff:127.0.0.1]"])
async def test_a_guard_refuses_a_private_address_without_a_connection(host: str) -> None:
    async with Receiver() as receiver, open_http(AddressPolicy()) as http:
        with pytest.raises(Reject) as refused:
            await http.get(f"http://{host}:{receiver.port}/")
    assert receiver.connections == 0
    assert refused.value.code == "ADDRESS_NOT_ALLOWED"
    assert "127" not in str(refused.value)


@pytest.mark.parametrize("host", ["127.1", "2130706433", "0x7f.0.0.1"])
async def test_no_odd_spelling_of_a_private_address_gets_around_a_guard(host: str) -> None:
    async with Receiver() as receiver, open_http(AddressPolicy()) as http:
        # Which one depends on whether the resolver of the machine reads the spelling.
        with pytest.raises((Reject, httpx.TransportError)):
            await http.get(f"http://{host}:{receiver.port}/")
    assert receiver.connections == 0


async def test_a_guard_lets_the_allowed_port_of_an_address_through() -> None:
    async with Receiver() as allowed, Receiver() as other:
        policy = AddressPolicy(parse_networks(f"127.0.0.1:{allowed.port}"))
        async with open_http(policy) as http:
            # The name has two addresses on most machines, of which one is allowed.
            assert (await http.get(allowed.url)).status_code == 200
            with pytest.raises(Reject):
                await http.get(other.url)
            allowed.answers = [Answer(302, {"Location": other.url})]
            assert (await http.get(allowed.url)).status_code == 302
    assert other.connections == 0


async def test_a_function_has_the_guard_of_its_manifest_and_no_other_function_has_it() -> None:
    async with Receiver() as receiver:
        networks = f"127.0.0.1:{receiver.port}"
        specs = {
            "open": HttpClientSpec(),
            "guarded": HttpClientSpec(guard=True),
            "allowing": HttpClientSpec(guard=True, allowed_networks=networks),
        }
        functions = {name: function(name, spec) for name, spec in specs.items()}
        resources = SharedResources(functions, None, 1)
        await resources.open()
        opened = {name: resources.of(each)["http"] for name, each in functions.items()}
        for name in ("open", "allowing"):
            assert (await opened[name].get(receiver.url)).status_code == 200
        with pytest.raises(Reject):
            await opened["guarded"].get(receiver.url)
        await resources.close()


def function(name: str, client: HttpClientSpec) -> Function:
    """A function that uses `ctx.http`; its code does not matter."""
    spec = FunctionSpec(
        handler="functions.route_delivery.retention:forget_old_deliveries",
        schedule=ScheduleBindingSpec(every="1h"),
        uses=("http",),
        http_client=client,
    )
    return load(name, spec)
