"""`runtime replay` as a user runs it, in a folder of their own."""

import asyncio
import json
import os
import signal
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from runtime.broker.connection import Broker
from runtime.broker.stored import last_sequence
from tests.support.command import RUNTIME, runtime
from tests.support.host import eventually, fresh
from tests.support.servers import NatsServer

HANDLER = """
import asyncio
from pathlib import Path
from runtime import Context, Event, Reject

async def note(event: Event[dict], ctx: Context) -> None:
    if event.data["n"] == 3:
        raise Reject("NOT_THREE", "three is not wanted")
    if event.data["n"] == 99:
        Path("began").touch()
        await asyncio.sleep(0.5)
    await ctx.publish(event.subject.replace("in", "out"), event.raw)

async def answer(event: Event[bytes], ctx: Context) -> bytes:
    return event.data
"""


@pytest.fixture
async def stream(broker: Broker, tmp_path: Path) -> str:
    """A project with a function on a stream of its own, which has five messages."""
    name = fresh("PAST")
    (tmp_path / "functions").mkdir()
    (tmp_path / "functions" / "notes.py").write_text(HANDLER)
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests" / "app.yaml").write_text(
        f"streams:\n  {name}: {{subjects: ['{name}.*'], duplicate_window: 100ms}}\n"
        f"functions:\n  note:\n    handler: functions.notes:note\n    concurrency: 1\n"
        f"    consumer: {{stream: {name}, filter_subjects: [{name}.in]}}\n"
        f"  answer:\n    handler: functions.notes:answer\n    endpoint: {{subject: ask}}\n"
    )
    config = {"name": name, "subjects": [f"{name}.*"], "storage": "memory"}
    await broker.api(f"STREAM.CREATE.{name}", config)
    for number in range(1, 6):
        await broker.publish(f"{name}.in", json.dumps({"n": number}).encode())
    return name


async def test_the_past_runs_once_more_and_failures_are_listed(
    nats_server: NatsServer, broker: Broker, stream: str, tmp_path: Path
) -> None:
    url = nats_server.url

    counted = await runtime(
        url, "replay", "note", "--from", 2, "--until", 4, "--dry-run", folder=tmp_path
    )
    assert (counted.code, counted.out) == (
        0,
        f"3 messages of {stream}, from sequence 2 to sequence 4.\n",
    )
    assert await last_sequence(broker, stream) == 5

    done = await runtime(url, "replay", "note", "--from", "1h", "--yes", folder=tmp_path)

    assert done.code == 3
    lines = done.out.splitlines()
    assert lines[0].split() == ["SEQ", "CODE", "ATTEMPTS", "SUBJECT", "AT", "REASON"]
    assert lines[1].split()[:4] == ["3", "NOT_THREE", "1", f"{stream}.in"]
    assert "notes.py:8" in lines[1]
    assert lines[2:] == ["5 messages of 5 replayed; 4 done, 1 failed"]
    assert await last_sequence(broker, stream) == 9
    assert not (await broker.api(f"CONSUMER.NAMES.{stream}"))["consumers"]


async def test_it_asks_first_and_no_answer_but_yes_runs_anything(
    nats_server: NatsServer, broker: Broker, stream: str, tmp_path: Path
) -> None:
    arguments = ("replay", "note", "--from", 4, "--json")

    refused = await runtime(nats_server.url, *arguments, stdin="n\n", folder=tmp_path)
    agreed = await runtime(nats_server.url, *arguments, stdin="y\n", folder=tmp_path)

    assert (refused.code, refused.out) == (1, "")
    assert (
        f"2 messages of {stream}, from sequence 4 to sequence 5.\nReplay through note"
        in refused.err
    )
    assert agreed.code == 0
    assert agreed.documents == [
        {"stream": stream, "messages": 2, "done": 2, "failed": 0, "retried": 0,
         "next_sequence": None},
    ]  # fmt: skip
    assert await last_sequence(broker, stream) == 7


async def test_ctrl_c_ends_after_the_call_under_way_and_says_where_to_go_on(
    nats_server: NatsServer, broker: Broker, stream: str, tmp_path: Path
) -> None:
    for number in (99, 7, 8):
        await broker.publish(f"{stream}.in", json.dumps({"n": number}).encode())
    process = await asyncio.create_subprocess_exec(
        RUNTIME, "replay", "note", "--from", "6", "--yes",
        cwd=tmp_path, env={"PATH": os.defpath, "NATS_URL": nats_server.url},
        stdout=PIPE, stderr=PIPE,
    )  # fmt: skip

    async def has_begun() -> bool:
        return (tmp_path / "began").exists()

    await eventually(has_begun, "the call of the first message")
    process.send_signal(signal.SIGINT)
    out, err = await asyncio.wait_for(process.communicate(), 30)

    assert process.returncode == 1
    assert out.decode() == "1 message of 3 replayed; 1 done, 0 failed\n"
    assert err.decode() == "Stopped. Go on with --from 7\n"
    assert await last_sequence(broker, stream) == 9


async def test_a_stream_that_is_gone_exits_with_2_and_says_how_to_make_it(
    nats_server: NatsServer, broker: Broker, stream: str, tmp_path: Path
) -> None:
    await broker.api(f"STREAM.DELETE.{stream}")

    done = await runtime(nats_server.url, "replay", "note", "--from", "1", folder=tmp_path)

    assert done.code == 2
    assert done.err == (
        f"stream {stream}: it does not exist on this server; "
        "`runtime apply` makes the streams of the manifests\n1 problem\n"
    )
