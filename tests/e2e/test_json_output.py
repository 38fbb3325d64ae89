"""`--json` of the commands that change something; the lists' own tests have theirs."""

from pathlib import Path
from typing import Any

from runtime import Context, Reject
from runtime.broker.connection import Broker
from tests.support.command import Done, runtime
from tests.support.host import fresh, running_host, wait_for_letters
from tests.support.servers import NatsServer


async def test_every_change_is_reported_as_an_object(
    nats_server: NatsServer, broker: Broker
) -> None:
    name, stream = fresh("work"), fresh("JOBS")
    is_mended = False

    async def act(ctx: Context, event: Any) -> None:
        if not is_mended:
            raise Reject("BAD")

    async def run(*arguments: object) -> Done:
        return await runtime(nats_server.url, *arguments, "--json")

    functions = {name: {"handler": "on_event", "consumer": {"stream": stream}}}
    streams = {stream: {"subjects": [stream], "storage": "memory"}}
    async with running_host(nats_server.url, functions, {name: act}, streams=streams):
        for _ in range(3):
            await broker.publish(stream, b"")
        letters = await wait_for_letters(broker, name, 3)
        is_mended = True
        redriven = await run("dlq", "redrive", letters[0].sequence, 999_999)
        purged = await run("dlq", "purge", "--function", name, "--yes")
        nothing = await run("dlq", "purge", "--function", name, "--yes")
        paused = await run("pause", name, "--for", "1h")
        resumed = await run("resume", name)
        cancelled = await run("parked", "cancel", 999_999, "--yes")

    consumers = [f"{stream}/{name}", f"MAILBOX/{name}"]
    assert redriven.documents == [{"redriven": 1, "missing": 1, "too_large": []}]
    assert purged.documents == [{"removed": 2}]
    assert (nothing.code, nothing.documents) == (2, [{"removed": 0}])
    [pause] = paused.documents
    assert (pause["function"], pause["consumers"]) == (name, consumers)
    assert pause["paused_until"] > "2026"
    assert resumed.documents == [{"function": name, "was_paused": True, "consumers": consumers}]
    assert (cancelled.code, cancelled.documents) == (2, [{"cancelled": 0, "missing": 1}])


async def test_applied_changes_are_the_objects_that_plan_shows(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    name = fresh("S")
    (tmp_path / "app.yaml").write_text(f"streams: {{{name}: {{subjects: [{name}]}}}}\n")

    planned = await runtime(nats_server.url, "plan", "app.yaml", "--json", folder=tmp_path)
    applied = await runtime(nats_server.url, "apply", "app.yaml", "--json", folder=tmp_path)
    again = await runtime(nats_server.url, "apply", "app.yaml", "--json", folder=tmp_path)

    assert f"stream {name}" in [document["object"] for document in applied.documents]
    assert planned.documents == applied.documents
    assert (again.code, again.out) == (0, "")


async def test_the_contexts_of_the_nats_command_line_are_named(tmp_path: Path) -> None:
    (tmp_path / "nats.password").write_text("secret\n")
    config = str(tmp_path / "config")

    done = await runtime(
        "", "nats-context", "--json", RUNTIME_DATA_DIR=str(tmp_path), XDG_CONFIG_HOME=config
    )

    folder = str(tmp_path / "config" / "nats" / "context")
    assert done.documents == [{"folder": folder, "contexts": ["runtime", "runtime-system"]}]
