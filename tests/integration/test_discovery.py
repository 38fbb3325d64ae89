"""Every kind of function on several hosts, as any NATS client discovers them."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any

import nats
import pytest
from nats.aio.client import Client

from runtime import Context, Event, Retry
from runtime.binding.endpoint import endpoint_metadata
from runtime.broker.connection import Broker
from runtime.broker.micro import Answer, MicroEndpoint
from runtime.discovery import Discovery
from runtime.loader import Function, load_all
from runtime.message import Message
from runtime.observe.metrics import ENDPOINT_OUTCOMES, FunctionMetrics
from tests.support.adr32 import MODELS, Info, Stats
from tests.support.host import eventually, fresh, make_manifest, running_host, wait_until_settled
from tests.support.raw_client import RawClient
from tests.support.servers import NatsServer

DEADLINE_S = 60.0
VERBS = ("PING", "INFO", "STATS")


@pytest.fixture
async def client(nats_server: NatsServer) -> AsyncIterator[Client]:
    """A client of the client library, on a connection of its own."""
    connected = await nats.connect(nats_server.url)
    yield connected
    await connected.close()


async def ask(client: Client, subject: str, count: int, payload: bytes = b"") -> list[Any]:
    """The first `count` answers."""
    inbox = client.new_inbox()
    subscription = await client.subscribe(inbox)
    await client.publish(subject, payload, inbox)
    answers = [await subscription.next_msg(DEADLINE_S) for _ in range(count)]
    await subscription.unsubscribe()
    return [json.loads(answer.data) for answer in answers]


@dataclass(frozen=True, slots=True)
class Kinds:
    """Names of a function of each kind, which two hosts run."""

    stream: str
    single: str
    batch: str
    ordered: str
    schedule: str
    first: str
    second: str
    service: str
    lasting: str

    @property
    def services(self) -> set[str]:
        return {self.single, self.batch, self.ordered, self.schedule, self.service, self.lasting}


@pytest.fixture
async def kinds(nats_server: NatsServer) -> AsyncIterator[Kinds]:
    """Two hosts, each with a function of every kind; services run on the first only."""
    names = ("single", "batch", "ordered", "schedule", "first", "second", "service", "lasting")
    found = Kinds(fresh("DISCOVERED"), *map(fresh, names))

    def consumer(handler: str, durable: str, **more: Any) -> dict[str, Any]:
        subjects = {"stream": found.stream, "durable": durable}
        return {"handler": handler, "consumer": subjects, **more}

    functions = {
        found.single: consumer("on_event", "single", description="Takes jobs.\nOne by one."),
        found.batch: consumer("on_orders", "batch", batch={"size": 10}),
        found.ordered: consumer("on_event", "ordered", ordered_by={"token": 2}),
        found.schedule: {"handler": "on_tick", "schedule": {"every": "1h"}},
        found.first: {
            "handler": "on_request",
            "endpoint": {"subject": f"{found.service}.a", "service": found.service},
        },
        found.second: {
            "handler": "on_raw_request",
            "endpoint": {"subject": f"{found.service}.b", "service": found.service},
        },
        found.lasting: {"handler": "run", "service": True},
    }

    async def refuse(ctx: Context, event: Event[bytes]) -> None:
        if event.raw == b"bad" and ctx.attempt == 1:
            raise Retry("once more", delay_s=0)

    async def ignore(ctx: Context, _arguments: object) -> None:
        return None

    async def answer(ctx: Context, event: Event[bytes]) -> bytes:
        return b"{}"

    async def live(ctx: Context) -> None:
        await ctx.stopping.wait()

    does: dict[str, Callable[..., Any]] = {
        found.single: refuse,
        found.batch: ignore,
        found.ordered: ignore,
        found.lasting: live,
    }
    does |= {found.first: answer, found.second: answer}
    options: dict[str, Any] = {"streams": {found.stream: {"subjects": [f"{found.stream}.>"]}}}
    async with AsyncExitStack() as hosts:
        for services in (True, False):
            host = running_host(nats_server.url, functions, does, services=services, **options)
            await hosts.enter_async_context(host)
        yield found


async def test_every_answer_of_every_kind_has_the_form_of_the_decision_record(
    kinds: Kinds, client: Client
) -> None:
    found: dict[tuple[str, str], list[Any]] = {}
    for verb in VERBS:
        for service in kinds.services:
            expected = 1 if service == kinds.lasting else 2
            answers = await ask(client, f"$SRV.{verb}.{service}", expected)
            found[verb, service] = [MODELS[verb].model_validate(answer) for answer in answers]
            own = await ask(client, f"$SRV.{verb}.{service}.{answers[0]['id']}", 1)
            assert own[0]["id"] == answers[0]["id"]
        everyone = await ask(client, f"$SRV.{verb}", 2 * len(kinds.services) - 1)
        assert len({answer["id"] for answer in everyone}) == len(everyone)
        assert {answer["name"] for answer in everyone} == kinds.services

    infos: list[Info] = [
        info for (verb, _), each in found.items() if verb == "INFO" for info in each
    ]
    for info in infos:
        assert info.metadata["host"]
        assert int(info.metadata["pid"])
        for endpoint in info.endpoints:
            assert len(endpoint.metadata["code_version"]) == 12
            assert endpoint.metadata["function"]
    [lasting] = [info for info in infos if info.name == kinds.lasting]
    assert len(lasting.metadata["code_version"]) == 12
    [batch, _] = [info for info in infos if info.name == kinds.batch]
    assert '"number"' in batch.endpoints[0].metadata["schema.request"]
    [shared, _] = [info for info in infos if info.name == kinds.service]
    assert shared.description == "2 endpoints"
    assert [endpoint.name for endpoint in shared.endpoints] == [kinds.first, kinds.second]
    [single, _] = [info for info in infos if info.name == kinds.single]
    assert single.description == "Takes jobs.\nOne by one."


async def test_the_statistics_have_the_load_of_the_last_seconds(
    kinds: Kinds, client: Client, broker: Broker
) -> None:
    await broker.publish(f"{kinds.stream}.a", b"good")
    await broker.publish(f"{kinds.stream}.a", b"bad")
    await wait_until_settled(broker, kinds.stream, "single")
    for _ in range(3):
        await client.request(f"{kinds.service}.b", b"", timeout=DEADLINE_S)

    async def recent(service: str, endpoint: str) -> tuple[int, int, int]:
        answers = await ask(client, f"$SRV.STATS.{service}", 2)
        endpoints = [
            each
            for answer in answers
            for each in Stats.model_validate(answer).endpoints
            if each.name == endpoint
        ]
        loads = [each.data["recent"] for each in endpoints]
        assert all(load["seconds"] > 0 for load in loads)
        calls = sum(sum(load["handler_seconds"].values()) for load in loads)
        assert [each.num_errors for each in endpoints] == [load["errors"] for load in loads]
        return sum(load["messages"] for load in loads), sum(load["errors"] for load in loads), calls

    async def is_counted() -> bool:
        # The consumer tells that a message is settled before its host has counted the call.
        return await recent(kinds.single, kinds.single) == (3, 1, 3)

    await eventually(is_counted, "the third call in the statistics")
    assert await recent(kinds.service, kinds.second) == (3, 0, 3)
    assert await recent(kinds.service, kinds.first) == (0, 0, 0)


async def test_hostile_requests_change_nothing_and_get_an_ordinary_answer_or_none(
    kinds: Kinds, client: Client, nats_server: NatsServer
) -> None:
    listened = await client.subscribe("mailbox.>")
    async with RawClient(nats_server) as raw:
        for verb in (b"PING", b"INFO", b"STATS"):
            raw.publish(b"$SRV." + verb, b"\xff" * 10_000)
            raw.publish(b"$SRV." + verb, reply=b"mailbox.ready.x")
            raw.publish(b"$SRV." + verb, reply=b"$JS.API.STREAM.NAMES")
            raw.publish(b"$SRV." + verb + b".no_such_service", reply=b"answers")
            raw.publish(b"$SRV." + verb, block=b"NATS/1.0\r\n\xff:\xfe\r\n\r\n", reply=b"answers")
            raw.publish(b"$SRV." + verb.lower(), reply=b"answers")
        await raw.flush()

    for name in VERBS:
        answers = await ask(client, f"$SRV.{name}", 2 * len(kinds.services) - 1, b"[" * 10_000)
        for answer in answers:
            MODELS[name].model_validate(answer)
    await client.flush()
    assert listened.pending_msgs == 0


@pytest.mark.nats_cli
async def test_the_official_command_line_shows_every_kind_on_every_host(
    kinds: Kinds, nats_server: NatsServer, nats_cli: Callable[..., str]
) -> None:
    async def run(*arguments: str) -> str:
        return await asyncio.to_thread(nats_cli, nats_server.url, "micro", *arguments)

    services = sorted(kinds.services)
    listed, pinged, *statistics = await asyncio.gather(
        run("ls"), run("ping"), *(run("stats", service, "--json") for service in services)
    )
    for service, shown in zip(services, statistics, strict=True):
        expected = 1 if service == kinds.lasting else 2
        ids = [each["id"] for each in json.loads(shown)]
        assert len(ids) == expected
        assert all(one in listed for one in ids)
        assert pinged.count(service) == expected
    described = await run("info", kinds.batch)
    assert "code_version" in described
    assert "schema.request" in described


def load() -> Function:
    spec = {"handler": "on_request", "endpoint": {"subject": "late.it", "service": "late"}}
    return load_all(make_manifest({"late": spec}))["late"]


async def answer_now(_message: Message) -> Answer:
    return Answer(b"now")


async def test_a_reload_changes_the_metadata_under_the_same_id(
    broker: Broker, client: Client
) -> None:
    discovery = Discovery(broker)
    function = load()
    metrics = FunctionMetrics("late", ENDPOINT_OUTCOMES)
    endpoint = MicroEndpoint("late", "late.it", answer_now, metadata=endpoint_metadata(function))
    discovery.add_endpoint(function, endpoint, metrics)
    await discovery.start()
    [before] = await ask(client, "$SRV.INFO.late", 1)

    discovery.statuses["late"].failed("late.py:3: invalid syntax")
    [failed] = await ask(client, "$SRV.INFO.late", 1)
    spec = function.spec.model_copy(update={"description": "Answers later."})
    discovery.statuses["late"].swapped(replace(function, spec=spec, code_version="0123456789ab"))
    [after] = await ask(client, "$SRV.INFO.late", 1)

    assert {each["id"] for each in (before, failed, after)} == {before["id"]}
    shown = [each["endpoints"][0]["metadata"] for each in (before, failed, after)]
    assert shown[1]["code_version"] == shown[0]["code_version"] != shown[2]["code_version"]
    assert shown[1]["reload_error"] == "late.py:3: invalid syntax"
    assert "reload_error" not in shown[2]
    assert after["description"] == "Answers later."
    for each in (before, failed, after):
        Info.model_validate(each)
    await discovery.stop()


async def test_functions_are_added_and_removed_while_the_others_answer(
    broker: Broker, client: Client
) -> None:
    discovery = Discovery(broker)
    function = load()
    for name in ("late", "later"):
        if name == "later":
            await discovery.start()
        own = replace(function, name=name)
        endpoint = MicroEndpoint(name, f"{name}.it", answer_now)
        discovery.add_endpoint(own, endpoint, FunctionMetrics(name, ENDPOINT_OUTCOMES))
    discovery.add_service(replace(function, name="lasting"))
    await discovery.start()

    [both] = await ask(client, "$SRV.INFO.late", 1)
    answered = await client.request("later.it", b"", timeout=DEADLINE_S)
    await discovery.remove("late", 1.0)
    await discovery.remove("lasting", 1.0)
    await discovery.remove("never_added", 1.0)
    [left] = await ask(client, "$SRV.INFO.late", 1)
    everyone = await ask(client, "$SRV.PING", 1)

    assert [each["name"] for each in both["endpoints"]] == ["late", "later"]
    assert answered.data == b"now"
    assert [each["name"] for each in left["endpoints"]] == ["later"]
    assert everyone[0]["id"] == both["id"] == left["id"]
    assert discovery.is_flowing
    await discovery.remove("later", 1.0)
    await discovery.stop()
