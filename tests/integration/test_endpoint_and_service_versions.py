"""Versions of endpoints, services and schedules that are swapped while the host runs."""

import asyncio
import json
from typing import Any

from runtime.broker.connection import Broker
from runtime.deployments.function_change import FunctionChange
from runtime.host import Host
from tests.support.host import Journal, consumer, eventually, fresh, running_host
from tests.support.reloading import Project, noting
from tests.support.servers import NatsServer


def _answering(text: str) -> Any:
    async def handler(event: Any, ctx: Any) -> Any:
        return {"from": text}

    return handler


async def _answer_first(ctx: Any, event: Any) -> Any:
    return {"from": "first"}


async def _info(broker: Broker, service: str) -> dict[str, Any]:
    [reply] = await broker.request_many(f"$SRV.INFO.{service}", b"", wait_s=0.2)
    found: dict[str, Any] = json.loads(reply.data)
    return found


async def test_an_endpoint_answers_every_request_while_its_versions_and_its_binding_change(
    nats_server: NatsServer, broker: Broker
) -> None:
    ask, other = fresh("ask"), fresh("other")
    project = Project({ask: {"handler": "on_request", "endpoint": {"subject": ask}}})
    answers: list[str] = []
    is_over = asyncio.Event()

    async def keep_asking() -> None:
        while not is_over.is_set():
            reply = await broker.request(ask, b"{}", timeout_s=30)
            answers.append(json.loads(reply.data)["from"])

    async with running_host(nats_server.url, project.specs, {ask: _answer_first}) as host:
        before = await _info(broker, ask)
        asking = [asyncio.create_task(keep_asking()) for _ in range(4)]
        for number in range(10):
            await project.save(host, ask, str(number), handler=_answering(str(number)))
            project.declare(ask, concurrency=number + 1)
            project.declare(ask, description=f"Answers {number}.")
            project.declare(ask, endpoint={"subject": ask, "max_waiting": 100 + number})
            await project.reload(host)
        after = await _info(broker, ask)
        is_over.set()
        await asyncio.gather(*asking)
        project.declare(ask, endpoint={"subject": other})
        [moved] = (await project.reload(host)).values()
        reply = await broker.request(other, b"{}", timeout_s=30)

    assert set(answers) <= {"first", *map(str, range(10))}
    assert answers == sorted(answers, key=lambda each: -1 if each == "first" else int(each))
    assert after["id"] == before["id"]
    assert after["description"] == "Answers 9."
    assert after["endpoints"][0]["metadata"]["code_version"] == "9"
    assert moved.action == "rebound"
    assert json.loads(reply.data) == {"from": "9"}


def _serving(port: int, journal: Journal, name: str) -> Any:
    """A service that holds a port, as a web server would."""

    async def serve(ctx: Any) -> None:
        server = await asyncio.start_server(lambda *_: None, "127.0.0.1", port)
        journal.add(name)
        async with server:
            await ctx.stopping.wait()

    return serve


async def test_a_service_gives_its_port_to_its_next_version_and_comes_back_when_that_one_fails(
    nats_server: NatsServer, unused_tcp_port: int
) -> None:
    name, journal = fresh("web"), Journal()
    project = Project({name: {"handler": "run", "service": True}})
    first = _serving(unused_tcp_port, journal, "first")

    async def crash(ctx: Any) -> None:
        raise ValueError("hunter2")

    async with running_host(nats_server.url, project.specs, {name: first}) as host:
        failing = asyncio.create_task(host.wait_for_failure())
        await journal.wait(1)
        second = _serving(unused_tcp_port, journal, "second")
        swapped = await project.save(host, name, "second", handler=second)
        failed = await project.save(host, name, "bad", handler=crash)
        shown = await host.probes.check_reload()
        entries = await journal.wait(3)
        ready = await host.probes.check_functions()
        is_over = failing.done()
        failing.cancel()
        await asyncio.gather(failing, return_exceptions=True)

    assert (swapped.action, swapped.to_version) == ("rebound", "second")
    assert (failed.action, failed.to_version) == ("failed", "second")
    assert entries == ["first", "second", "second"]
    assert shown is not None
    assert "ValueError" in shown
    assert "hunter2" not in shown
    assert (ready, is_over) == (None, False)


async def test_a_changed_schedule_ticks_at_its_new_times_and_not_because_it_was_changed(
    nats_server: NatsServer, broker: Broker
) -> None:
    name, journal = fresh("nightly"), Journal()
    spec = {"handler": "on_tick", "schedule": {"every": "1h", "at_start": True}}
    project = Project({name: spec})

    async def tick(ctx: Any) -> None:
        journal.add("old")

    async def tick_anew(ctx: Any) -> None:
        journal.add("new")

    async with running_host(nats_server.url, project.specs, {name: tick}) as host:
        await journal.wait(1)
        project.declare(name, schedule={"every": "2h", "at_start": True})
        [rebound] = (await project.reload(host)).values()
        project.declare(name, schedule={"every": "1s", "at_start": True})
        await project.save(host, name, "new", handler=tick_anew)
        entries = await journal.wait(2)

    assert rebound.action == "rebound"
    assert entries[:2] == ["old", "new"]


async def test_a_consumer_that_becomes_an_endpoint_is_shown_as_one(
    nats_server: NatsServer, broker: Broker
) -> None:
    stream, work = fresh("S"), fresh("work")
    journal = Journal()
    spec = {"handler": "on_event", "consumer": {"stream": stream}}
    project = Project({work: spec}, {stream: {"subjects": [f"{stream}.>"]}})

    async def act(ctx: Any, event: Any) -> None:
        journal.add("old")

    async def change() -> FunctionChange:
        return (await project.reload(host))[work]

    async with running_host(
        nats_server.url, project.specs, {work: act}, streams=project.streams
    ) as host:
        project.specs[work] = {"handler": "on_request", "endpoint": {"subject": f"ask.{work}"}}
        project.write(work, "endpoint", handler=_answering("endpoint"))
        became = await change()
        reply = await broker.request(f"ask.{work}", b"{}", timeout_s=30)
        as_endpoint = await _info(broker, work)
        project.specs[work] = spec
        project.write(work, "consumer", handler=noting(journal.add, "consumer"))
        again = await change()
        await broker.publish(f"{stream}.a", b"1", msg_id="1")
        entries = await journal.wait(1)
        await eventually(lambda: _is_settled(broker, stream, work), "the message settled")
        as_consumer = await _info(broker, work)

    assert [each.action for each in (became, again)] == ["rebound", "rebound"]
    assert json.loads(reply.data) == {"from": "endpoint"}
    assert as_endpoint["endpoints"][0]["subject"] == f"ask.{work}"
    assert as_consumer["endpoints"][0]["subject"] == f"{stream}.>"
    assert entries == [("consumer", b"1")]


async def _is_settled(broker: Broker, stream: str, work: str) -> bool:
    found = await consumer(broker, stream, work)
    return not found["num_pending"] and not found["num_ack_pending"]


def _names_in(host: Host) -> set[str]:
    return set(host.functions)


async def test_a_function_that_cannot_start_is_not_added_and_is_added_when_mended(
    nats_server: NatsServer, broker: Broker
) -> None:
    ask, more = fresh("ask"), fresh("more")
    project = Project({ask: {"handler": "on_request", "endpoint": {"subject": ask}}})

    def fail(ctx: Any) -> None:
        raise KeyError("no")

    async with running_host(nats_server.url, project.specs, {ask: _answer_first}) as host:
        project.declare(more, handler="on_request", endpoint={"subject": more})
        failed = await project.save(host, more, "1", handler=_answering("more"), start=fail)
        names = _names_in(host)
        shown = await host.probes.check_reload()
        started = await project.save(host, more, "2", start=None)
        reply = await broker.request(more, b"{}", timeout_s=30)
        mended = await host.probes.check_reload()

    assert (failed.action, failed.to_version) == ("failed", "")
    assert names == {ask}
    assert shown is not None
    assert shown.startswith(f"{more}: ")
    assert (started.action, started.from_version, mended) == ("started", "", None)
    assert json.loads(reply.data) == {"from": "more"}


async def test_functions_that_are_renamed_side_by_side_all_run_and_each_answers_once(
    nats_server: NatsServer, broker: Broker
) -> None:
    project = Project({})
    mark = fresh("renamed")

    def rename(number: int) -> set[str]:
        for name in list(project.specs):
            project.remove(name)
        for each in range(8):
            name = f"{mark}_{number}_{each}"
            project.declare(name, handler="on_request", endpoint={"subject": name})
            project.write(name, "1", handler=_answering(name))
        return set(project.specs)

    rename(0)
    behaviours = dict.fromkeys(project.specs, _answer_first)
    async with running_host(nats_server.url, project.specs, behaviours) as host:
        failed: list[FunctionChange] = []
        for number in range(1, 6):
            wanted = rename(number)
            failed += [each for each in (await project.reload(host)).values() if each.error]
        running = _names_in(host)
        replies = await broker.request_many("$SRV.PING", b"", wait_s=0.5)

    answering = [json.loads(reply.data)["name"] for reply in replies]
    assert failed == []
    assert running == wanted
    assert sorted(name for name in answering if name.startswith(mark)) == sorted(wanted)
