"""`runtime invoke` with a server: stored messages, real effects, and running hosts."""

from pathlib import Path
from typing import Any

import pytest

from runtime import Context, Reject, Retry
from runtime.broker.connection import Broker
from runtime.broker.stored import last, last_sequence
from tests.support.command import Done, runtime
from tests.support.host import fresh, running_host, wait_for_letters
from tests.support.servers import NatsServer

SOURCE = """
from runtime import Context, Event

async def copy(event: Event[bytes], ctx: Context) -> None:
    await ctx.publish(f"{event.stream}.out", event.data + event.headers.get("Mark", "").encode())
"""


@pytest.fixture
async def stream(broker: Broker, tmp_path: Path) -> str:
    """A stream, and a project with a function on it."""
    name = fresh("JOBS")
    config = {"name": name, "subjects": [f"{name}.>"], "storage": "memory"}
    await broker.api(f"STREAM.CREATE.{name}", config)
    (tmp_path / "copying.py").write_text(SOURCE)
    (tmp_path / "app.yaml").write_text(
        f"streams: {{{name}: {{subjects: ['{name}.>']}}}}\n"
        f"functions: {{copy: {{handler: 'copying:copy', consumer: {{stream: {name}}}}}}}\n"
    )
    return name


async def test_a_stored_message_is_called_with_its_identity_and_nothing_is_sent_unless_live(
    nats_server: NatsServer, broker: Broker, stream: str, tmp_path: Path
) -> None:
    ack = await broker.publish(f"{stream}.in", b"data", headers={"Mark": "!"})
    arguments = ("invoke", "copy", "-m", "app.yaml", "--from-stream", f"{stream}:{ack.sequence}")

    recorded = await runtime(nats_server.url, *arguments, folder=tmp_path)
    assert await last_sequence(broker, stream) == 1
    live = await runtime(nats_server.url, *arguments, "--live", folder=tmp_path)

    assert (recorded.code, live.code) == (0, 0), live.err
    assert recorded.out.splitlines()[1] == "Would have sent (--live sends)"
    assert recorded.out.splitlines()[2].startswith(
        f"  publish {stream}.out, 5 bytes, id {stream}-1-"
    )
    assert live.out.splitlines()[1] == "Sent"
    stored = await last(broker, stream, f"{stream}.out")
    assert stored is not None
    assert stored.data == b"data!"


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ("--from-stream=NOWHERE:7", "message NOWHERE:7: it does not exist on this server"),
        ("--from-dlq=999999", "dead letter 999999: it does not exist on this server; `runtime dlq"),
    ],
)
async def test_a_message_that_is_gone_exits_with_2_and_one_sentence(
    nats_server: NatsServer, stream: str, tmp_path: Path, option: str, complaint: str
) -> None:
    done = await runtime(
        nats_server.url, "invoke", "copy", "-m", "app.yaml", option, folder=tmp_path
    )

    assert (done.code, done.out) == (2, "")
    assert complaint in done.err


async def _remotely(
    server: NatsServer, name: str, *arguments: object
) -> tuple[Done, dict[str, Any]]:
    done = await runtime(server.url, "invoke", name, "--remote", "--json", *arguments)
    return done, done.documents[0] if done.out else {}


async def test_a_running_endpoint_is_asked(nats_server: NatsServer) -> None:
    name = fresh("ask")

    async def act(ctx: Context, event: Any) -> dict[str, int]:
        if event.data.number < 0:
            raise Reject("NEGATIVE", "it is below zero", status=409)
        return {"double": 2 * event.data.number}

    functions = {name: {"handler": "on_request", "endpoint": {"subject": f"{name}.it"}}}
    async with running_host(nats_server.url, functions, {name: act}):
        answered, answer = await _remotely(nats_server, name, "--data", '{"number": 4}')
        refused, refusal = await _remotely(nats_server, name, "--data", '{"number": -1}')

    assert (answered.code, answer["reply"]) == (0, {"text": '{"double":8}'})
    assert (refused.code, refusal["error"]) == (3, {"status": 409, "code": "NEGATIVE"})
    assert "it is below zero" in refusal["reply"]["text"]


async def test_a_running_consumer_gets_it_in_its_mailbox_and_the_outcome_is_told(
    nats_server: NatsServer, broker: Broker, stream: str
) -> None:
    name, seen = fresh("work"), []

    async def act(ctx: Context, event: Any) -> None:
        seen.append((event.stream, event.data))
        if event.data == b"bad":
            raise Reject("BAD", "it is bad")
        if event.data == b"later":
            raise Retry("busy", delay_s=3600)

    functions = {name: {"handler": "on_event", "consumer": {"stream": stream}}}
    streams = {stream: {"subjects": [f"{stream}.>"], "storage": "memory"}}
    async with running_host(nats_server.url, functions, {name: act}, streams=streams):
        good, _ = await _remotely(nats_server, name, "--data", "good")
        bad, dead = await _remotely(nats_server, name, "--data", "bad")
        [letter] = await wait_for_letters(broker, name)
        again, dead_again = await _remotely(nats_server, name, "--from-dlq", letter.sequence)
        late, parked = await _remotely(nats_server, name, "--data", "later")
        ack = await broker.publish(f"{stream}.in", b"stored")
        first, _ = await _remotely(nats_server, name, "--from-stream", f"{stream}:{ack.sequence}")
        repeat, _ = await _remotely(nats_server, name, "--from-stream", f"{stream}:{ack.sequence}")

    assert [done.code for done in (good, bad, again, late, first, repeat)] == [0, 3, 3, 3, 0, 0]
    assert (dead["dead_letter"], dead["code"]) == (letter.sequence, "BAD")
    assert (parked["reason"], parked["parked_until"] > "2026") == ("busy", True)
    assert seen[:2] == [("INVOKED", b"good"), ("INVOKED", b"bad")]
    assert dead_again["dead_letter"] > letter.sequence
    assert seen.count((stream, b"stored")) == 3  # From its stream, and each time from the mailbox.


async def test_a_consumer_that_no_host_runs_leaves_it_in_the_mailbox_and_says_so(
    nats_server: NatsServer, stream: str
) -> None:
    name = fresh("work")

    async def act(ctx: Context, event: Any) -> None: ...

    functions = {name: {"handler": "on_event", "consumer": {"stream": stream}}}
    streams = {stream: {"subjects": [f"{stream}.>"], "storage": "memory"}}
    async with running_host(nats_server.url, functions, {name: act}, streams=streams):
        pass
    arguments = ("invoke", name, "--remote", "--data", "x", "--timeout", "100ms")
    waiting = await runtime(nats_server.url, *arguments)

    assert waiting.code == 1
    assert waiting.out.startswith("no outcome within ")
    assert f"the message stays in the mailbox of {name} until a host" in waiting.out


async def test_a_function_that_nobody_knows_exits_with_2(nats_server: NatsServer) -> None:
    done = await runtime(nats_server.url, "invoke", "nobody", "--remote")

    assert (done.code, done.out) == (2, "")
    assert done.err == "function nobody: no host runs it; `runtime ls` lists what runs\n1 problem\n"
