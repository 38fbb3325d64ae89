from collections.abc import Callable
from typing import Any

from runtime import Context, Event, Reject
from runtime.broker.connection import Broker
from tests.support.command import runtime
from tests.support.host import Journal, fresh, running_host, wait_for_letters, wait_until_settled
from tests.support.servers import NatsServer


async def test_functions_are_shown_with_what_waits_what_failed_and_who_runs_them(
    nats_server: NatsServer, broker: Broker
) -> None:
    stream, work, ask, serve = fresh("JOBS"), fresh("work"), fresh("ask"), fresh("serve")
    url, calls = nats_server.url, Journal()
    functions = {
        work: {"handler": "on_event", "consumer": {"stream": stream, "durable": "workers"}},
        ask: {"handler": "on_request", "endpoint": {"subject": f"{ask}.get"}},
        serve: {"handler": "run", "service": True},
    }

    async def judge(ctx: Context, event: Event[bytes]) -> None:
        calls.add(event.raw)
        if event.raw == b"bad":
            raise Reject("BAD")

    async def live(ctx: Context) -> None:
        await ctx.stopping.wait()

    async def look() -> dict[str, dict[str, Any]]:
        done = await runtime(url, "ls", "--json")
        assert done.code == 0, done.err
        return {str(document["function"]): document for document in done.documents}

    options: dict[str, Any] = {"streams": {stream: {"subjects": [f"{stream}.>"]}}}
    does: dict[str, Callable[..., Any]] = {work: judge, serve: live}
    async with (
        running_host(url, functions, does, **options),
        running_host(url, functions, does, services=False, **options),
    ):
        await broker.publish(f"{stream}.a", b"good")
        await broker.publish(f"{stream}.a", b"bad")
        await wait_for_letters(broker, work)
        await wait_until_settled(broker, stream, "workers")
        live_view = await look()
        table = await runtime(url, "ls")
    for number in range(1500):
        await broker.publish_core(f"{stream}.a", str(number).encode())
    await broker.flush()
    left_view = await look()
    left_table = await runtime(url, "ls")

    shown = live_view[work]
    processes = shown.pop("processes")
    times = [shown.pop(name) for name in ("messages_per_s", "p50_s", "p99_s")]
    assert shown == {
        "function": work,
        "kind": "consumer",
        "service": "",
        "bound_to": f"{stream}/workers",
        "pending": 0,
        "ack_pending": 0,
        "retried": 0,
        "parked": 0,
        "dead_letters": 1,
        "versions": shown["versions"],
        "paused_until": None,
        "drift": "",
        "instances": 2,
        "error_share": 0.5,
    }
    assert all(0 < number < 100 for number in times)
    [version] = shown["versions"]
    assert [each["version"] for each in processes] == [version] * 2
    assert all(each["host"] and each["pid"] and each["version_since"] for each in processes)
    assert (live_view[ask]["bound_to"], live_view[ask]["instances"]) == (f"{ask}.get", 2)
    assert (live_view[ask]["kind"], live_view[ask]["service"]) == ("endpoint", ask)
    assert live_view[serve]["kind"] == "service"
    assert (live_view[serve]["instances"], live_view[serve]["pending"]) == (1, None)
    [row] = [row for row in table.rows if row[0] == work]
    assert row[1:3] == ["consumer", "0"]
    assert row[4] == "50%"
    assert row[7:12] == ["0", "0", "0", "1", "2"]
    assert row[13:] == ["running", f"{stream}/workers"]
    assert (left_view[work]["pending"], left_view[work]["instances"]) == (1500, 0)
    assert ask not in left_view
    [row] = [row for row in left_table.rows if row[0] == work]
    assert (row[2:7], row[11], row[13:15]) == (["1,500", *["-"] * 4], "0", ["not", "running"])


async def test_a_server_without_functions_says_so(nats_server: NatsServer, broker: Broker) -> None:
    for stream in (await broker.api("STREAM.NAMES")).get("streams") or []:
        await broker.api(f"STREAM.DELETE.{stream}")

    done = await runtime(nats_server.url, "ls")

    assert done.code == 0
    assert done.out == "No functions: no host runs, and none ever bound one on this server.\n"
