"""`runtime top` on a pseudo-terminal."""

import asyncio
import contextlib
import re
from pathlib import Path
from typing import Any

from runtime import Context, Event
from runtime.broker.connection import Broker
from runtime.errors import PublishFailed
from tests.support.command import RUNTIME, runtime
from tests.support.documentation import free_port
from tests.support.host import fresh, running_host
from tests.support.servers import NatsServer
from tests.support.terminal import OnTerminal, on_terminal, widest


def frames(shown: OnTerminal) -> list[str]:
    """What the screen showed, one after the other."""
    return shown.raw.replace("\r\n", "\n").split("\x1b[H")


async def test_the_load_is_live_sortable_and_survives_that_nats_is_away(
    server_directory: Path,
) -> None:
    server = NatsServer(server_directory)
    stream, work, idle = fresh("JOBS"), fresh("work"), fresh("idle")
    functions = {
        work: {"handler": "on_event", "consumer": {"stream": stream, "durable": "work"}},
        idle: {"handler": "on_request", "endpoint": {"subject": f"{idle}.get"}},
    }

    async def take(ctx: Context, event: Event[bytes]) -> None:
        return None

    def watch() -> tuple[int, OnTerminal]:
        with on_terminal(
            [RUNTIME, "top", "--every", "1", "--sort", "msg/s"],
            columns=80,
            folder=server_directory,
            environment={"NATS_URL": server.url},
        ) as shown:
            shown.wait_for(rf"^{work} +[▁▂▃▄▅▆▇ ]*█[▁▂▃▄▅▆▇█ ]* +[1-9][\d.,k]* ")
            shown.press("n")
            shown.wait_for("FUNCTION▲")
            shown.resize(120, 40)
            shown.wait_for("P50")
            server.kill()
            shown.wait_for("NATS is away, waiting for it; the figures are of ")
            shown.press("r")
            shown.wait_for("FUNCTION▼")
            server.restart()
            shown.wait_for(r"errors\n\n\n(.|\n)*q quit", in_last_screen=True)
            shown.press("q")
            return shown.wait_until_ended(), shown

    options: dict[str, Any] = {"streams": {stream: {"subjects": [f"{stream}.>"]}}}
    async with running_host(server.url, functions, {work: take}, **options):
        sending = asyncio.create_task(_send(server.url, f"{stream}.a"))
        code, shown = await asyncio.to_thread(watch)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
    server.stop()

    assert code == 0
    assert re.search(r"1 host, 2 functions  \S+ msg/s", shown.raw)
    assert max(widest(frame) for frame in frames(shown)) <= 120
    # The cursor, and the user's own screen.
    assert shown.raw.rstrip().endswith("\x1b[?25h\x1b[?1049l")


async def _send(url: str, subject: str) -> None:
    broker = await Broker.connect(url, name="test")
    try:
        while True:
            with contextlib.suppress(PublishFailed):
                await broker.publish_core(subject, b"x")
            await asyncio.sleep(0.02)
    finally:
        await broker.close()


async def test_ctrl_c_ends_it_and_restores_the_terminal(nats_server: NatsServer) -> None:
    def watch() -> tuple[int, str]:
        with on_terminal(
            [RUNTIME, "top"],
            columns=80,
            folder=Path.cwd(),
            environment={"NATS_URL": nats_server.url},
        ) as shown:
            shown.wait_for("No functions")
            shown.press_ctrl_c()
            return shown.wait_until_ended(), shown.raw

    code, raw = await asyncio.to_thread(watch)

    assert code == 0
    assert "Traceback" not in raw
    assert "Aborted" not in raw


async def test_without_nats_it_exits_with_1_and_leaves_the_screen_alone(
    tmp_path: Path,
) -> None:
    def watch() -> tuple[int, list[str]]:
        url = f"nats://me:hunter2@127.0.0.1:{free_port()}"
        with on_terminal(
            [RUNTIME, "top"], columns=80, folder=tmp_path, environment={"NATS_URL": url}
        ) as shown:
            return shown.wait_until_ended(), shown.lines

    code, lines = await asyncio.to_thread(watch)

    text = " ".join(lines)
    assert code == 1
    assert text.startswith("NATS at 127.0.0.1:")
    assert "Check that this server runs" in text
    assert "hunter2" not in text


async def test_without_a_terminal_it_says_what_to_use(nats_server: NatsServer) -> None:
    done = await runtime(nats_server.url, "top")

    assert (done.code, done.out) == (2, "")
    assert done.err == "runtime top needs a terminal; elsewhere use `runtime ls --json`\n"
