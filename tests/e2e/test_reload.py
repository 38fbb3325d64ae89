"""`runtime serve --reload`: a person saves a file, and the next message meets the new code."""

import asyncio
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from runtime.broker.connection import Broker
from runtime.message import Message
from tests.support.host import fresh
from tests.support.servers import NatsServer
from tests.support.serving import RUNTIME, serving
from tests.support.terminal import on_terminal, widest

MODULE = """
from runtime import Context, Event

async def work(event: Event[bytes], ctx: Context) -> None:
    await ctx.publish_core("seen.STREAM", b"VERSION " + event.raw)
"""
MANIFEST = """
streams:
  STREAM: {subjects: ["STREAM.>"]}
functions:
  work:
    handler: work_STREAM:work
    consumer: {stream: STREAM, durable: work_STREAM}
"""
SHOWN = """\
12:00:00 ERROR take_order: Not reloaded, the last good version runs on
               where=shop.py:6  wrong="SyntaxError: invalid syntax"
               remedy="correct the module"
  5 │     await ctx.publish_core("seen.STREAM", b"VERSION " + event.raw)
> 6 │ def broken(:"""


class Shop:
    """A folder with a manifest and a module, and what its function has seen."""

    def __init__(self, folder: Path, broker: Broker, address: str) -> None:
        self.folder = folder
        self.stream = fresh("RELOAD")
        self.module = folder / f"work_{self.stream}.py"
        self.environment = {"NATS_URL": address, "RUNTIME_GRACE_S": "5"}
        self._broker = broker
        self._seen: asyncio.Queue[Message] = asyncio.Queue()
        self.save("v1")
        (folder / "app.yaml").write_text(MANIFEST.replace("STREAM", self.stream))

    def save(self, version: str, source: str = MODULE) -> None:
        text = source.replace("STREAM", self.stream).replace("VERSION", version)
        new = self.module.with_suffix(".tmp")
        new.write_text(text)
        new.replace(self.module)

    async def listen(self) -> None:
        await self._broker.subscribe(f"seen.{self.stream}", self._seen.put_nowait)

    async def ask(self, payload: str) -> str:
        """Publish a message, and return what the function said of it."""
        await self._broker.publish(f"{self.stream}.x", payload.encode(), msg_id=fresh("m"))
        async with asyncio.timeout(20):
            return (await self._seen.get()).data.decode()


@pytest.fixture
async def shop(tmp_path: Path, nats_server: NatsServer, broker: Broker) -> AsyncIterator[Shop]:
    made = Shop(tmp_path, broker, nats_server.url)
    await made.listen()
    yield made
    await broker.api(f"STREAM.DELETE.{made.stream}")


def inotify_of(pid: int) -> list[Path]:
    """What a process has open to hear of changed files. Source: proc(5), inotify(7)."""
    opened = Path(f"/proc/{pid}/fd").iterdir()
    return [each for each in opened if str(each.readlink()) == "anon_inode:inotify"]


async def test_the_first_message_after_a_save_meets_the_new_code_again_and_again(
    shop: Shop,
) -> None:
    async with serving(shop.folder, "app.yaml", "--reload", **shop.environment) as served:
        await served.wait_for_line("Ready")
        assert await shop.ask("first") == "v1 first"
        for number in (2, 3):
            shop.save(f"v{number}")
            line = await served.wait_for_line("Swapped", count=number - 1)
            assert line["function"] == "work"
            assert re.fullmatch("[0-9a-f]{12}", line["to"])
            assert await shop.ask("a") == f"v{number} a"

        assert inotify_of(served.process.pid)
        shop.save("v4", MODULE + "broken(\n")
        line = await served.wait_for_line("Not reloaded, the last good version runs on")
        assert line["where"] == f"{shop.module.name}:6"
        assert line["wrong"] == "SyntaxError: '(' was never closed"
        assert "> 6 │ broken(" in line["excerpt"]
        assert await shop.ask("b") == "v3 b"

        shop.save("v5")
        await served.wait_for_line("Swapped", count=3)
        assert await shop.ask("c") == "v5 c"
        served.send(signal.SIGTERM)
        assert await served.wait_until_ended(20) == 0
    assert "Traceback" not in served.text


async def test_a_function_that_is_added_to_a_manifest_is_served(shop: Shop) -> None:
    async with serving(shop.folder, "app.yaml", "--reload", **shop.environment) as served:
        await served.wait_for_line("Ready")
        more = "  more:\n    handler: work_STREAM:work\n    endpoint: {subject: more.STREAM}\n"
        manifest = (MANIFEST + more).replace("STREAM", shop.stream)
        (shop.folder / "app.yaml").write_text(manifest)
        await served.wait_for_line("Started", function="more")

        (shop.folder / "app.yaml").write_text(MANIFEST.replace("STREAM", shop.stream))
        await served.wait_for_line("Stopped", function="more")
        assert await shop.ask("a") == "v1 a"


async def test_without_reload_nothing_is_watched(shop: Shop) -> None:
    async with serving(shop.folder, **shop.environment) as served:
        await served.wait_for_line("Ready")
        shop.save("v2")
        assert await shop.ask("a") == "v1 a"
        assert not inotify_of(served.process.pid)


def test_a_person_at_80_columns_reads_what_was_swapped_in_one_line_and_what_is_wrong(
    tmp_path: Path,
) -> None:
    (tmp_path / "shop.py").write_text(MODULE)
    entry = "{handler: 'shop:work', endpoint: {subject: shop}}"
    (tmp_path / "app.yaml").write_text(f"functions:\n  take_order: {entry}\n")
    command: list[str | Path] = [RUNTIME, "serve", "app.yaml", "--reload"]
    ports = {f"RUNTIME_{name}_PORT": "0" for name in ("NATS", "MONITOR", "MQTT", "ADMIN")}
    with on_terminal(command, columns=80, folder=tmp_path, environment=ports) as shown:
        shown.wait_for("Ready in")
        (tmp_path / "shop.py").write_text(MODULE + "# new\n")
        line = shown.wait_for("^.*Swapped.*$").group()
        assert re.fullmatch(
            r"[\d:]{8} INFO  take_order: Swapped  from=[0-9a-f]{8}  to=[0-9a-f]{8}  ms=\d+", line
        )

        (tmp_path / "shop.py").write_text(MODULE + "def broken(:\n")
        shown.wait_for("> 6 │ def broken")
        shown.press_ctrl_c()
        assert shown.wait_until_ended() == 0
        assert widest(shown.raw) <= 80
    at = next(number for number, line in enumerate(shown.lines) if "Not reloaded" in line)
    assert re.sub(r"^[\d:]{8}", "12:00:00", "\n".join(shown.lines[at : at + 5])) == SHOWN
