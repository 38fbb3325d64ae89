"""`runtime logs` with two hosts that run in processes of their own."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import pytest

from runtime.broker.connection import Broker
from runtime.errors import RequestFailed
from tests.support.command import RUNTIME, runtime
from tests.support.servers import NatsServer
from tests.support.serving import serving
from tests.support.terminal import OnTerminal, on_terminal, widest

MANIFEST = """
functions:
  talk: {handler: "talk:talk", endpoint: {subject: talk.now}}
  listen: {handler: "talk:listen", endpoint: {subject: listen.now}}
"""
MODULE = """
import logging

from runtime import Context, Event


async def talk(event: Event[bytes], ctx: Context) -> bytes:
    ctx.log.debug("Thinking", about=event.raw.decode())
    ctx.log.info("Said a word", word=event.raw.decode(), api_key="hunter2")
    return b""


def listen(event: Event[bytes], ctx: Context) -> bytes:
    logging.getLogger("library").error("A line of a library")
    raise ValueError("nothing to hear")
"""


@pytest.fixture
async def hosts(tmp_path: Path, nats_server: NatsServer, broker: Broker) -> AsyncIterator[str]:
    """The URL of a server with two hosts, whose own level is INFO."""
    (tmp_path / "app.yaml").write_text(MANIFEST)
    (tmp_path / "talk.py").write_text(MODULE)
    async with AsyncExitStack() as running:
        both = [
            await running.enter_async_context(serving(tmp_path, NATS_URL=nats_server.url))
            for _ in range(2)
        ]
        for host in both:
            await host.wait_for_line("Ready")
        yield nats_server.url


@contextmanager
def following(url: str, *arguments: str, columns: int = 80) -> Iterator[OnTerminal]:
    command: list[str | Path] = [RUNTIME, "logs", "-f", *arguments]
    with on_terminal(
        command, columns=columns, folder=Path.cwd(), environment={"NATS_URL": url}
    ) as shown:
        yield shown


async def test_lines_of_all_hosts_are_followed_at_a_level_below_their_own(
    hosts: str, broker: Broker
) -> None:
    answered = asyncio.Event()

    async def speak() -> None:
        number = 0
        while not answered.is_set():
            number += 1
            await broker.request("talk.now", f"word\x1b[31m{number}".encode())

    def follow() -> tuple[int, str, str]:
        with following(hosts, "talk", "--level", "debug") as shown:
            shown.wait_for(r"talk: Thinking  about=\S*word")
            shown.wait_for(r"talk: Said a word")
            # Before the key, with which a terminal discards what it has not shown yet.
            raw, text = shown.raw, " ".join(shown.lines)
            shown.press_ctrl_c()
            return shown.wait_until_ended(), raw, text

    speaking = asyncio.create_task(speak())
    code, raw, text = await asyncio.to_thread(follow)
    answered.set()
    await speaking
    before = await runtime(hosts, "logs", "talk", "--level", "debug", "--json", "--last", "3")
    with pytest.raises(RequestFailed, match="INTERNAL"):
        await broker.request("listen.now", b"")
    whole, errors, absent = await asyncio.gather(
        runtime(hosts, "logs", "--last", "1000"),
        runtime(hosts, "logs", "lis*", "--level", "error"),
        runtime(hosts, "logs", "absent"),
    )

    assert code == 0
    assert widest(raw) <= 80
    assert "\x1b[31m" not in raw
    assert "hunter2" not in raw
    assert "api_key=***" in text
    assert " on=" in text
    assert "Ready" not in raw
    assert [entry["event"] for entry in before.documents] == ["Said a word"] * 3
    assert all(entry["host"] and entry["pid"] for entry in before.documents)
    assert errors.out.count("ERROR") == 2
    assert "listen: A line of a library " in errors.out
    assert "logger=library" in errors.out
    assert "listen: Request failed" in errors.out
    assert 'raise ValueError("nothing to hear")' in errors.out
    assert (whole.code, len(whole.out.splitlines()) > 10) == (0, True)
    assert (absent.code, absent.out) == (2, "")
    assert absent.err == "No host runs a function named absent\n"


async def test_it_says_that_nats_is_away_and_goes_on_when_it_is_back(
    tmp_path: Path, server_directory: Path
) -> None:
    server = NatsServer(server_directory)
    (tmp_path / "app.yaml").write_text(MANIFEST)
    (tmp_path / "talk.py").write_text(MODULE)

    async def speak(url: str) -> None:
        broker = await Broker.connect(url, name="test")
        await broker.request("talk.now", b"again", timeout_s=20)
        await broker.close()

    def follow(step: Callable[[], None]) -> tuple[int, str]:
        with following(server.url, "talk") as shown:
            shown.wait_for("No host answers yet")
            step()
            shown.wait_for("Said a word  word=before")
            server.kill()
            shown.wait_for("NATS is away, waiting for it")
            server.restart()
            shown.wait_for("NATS answers again")
            asyncio.run(speak(server.url))
            shown.wait_for("Said a word  word=again")
            shown.press_ctrl_c()
            return shown.wait_until_ended(), "\n".join(shown.lines)

    async with AsyncExitStack() as stack:
        loop = asyncio.get_running_loop()

        async def begin() -> None:
            host = await stack.enter_async_context(serving(tmp_path, NATS_URL=server.url))
            await host.wait_for_line("Ready")
            broker = await Broker.connect(server.url, name="test")
            await broker.request("talk.now", b"before")
            await broker.close()

        def step() -> None:
            asyncio.run_coroutine_threadsafe(begin(), loop).result(60)

        code, text = await asyncio.to_thread(follow, step)
    server.stop()

    assert code == 0
    assert text.count("word=before") == 1


async def test_without_a_host_it_says_what_to_start(nats_server: NatsServer) -> None:
    done = await runtime(nats_server.url, "logs")

    assert (done.code, done.out) == (0, "")
    assert done.err == "No host answers: start one with `runtime serve`\n"
