"""Hosts of the test kit: the same functions and assertions in memory and on a real server."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from runtime import Batch, Context, Event, Reject, RequestFailed, Retry
from runtime.testing import TestHost
from tests.support.host import fresh
from tests.support.servers import NatsServer
from tests.support.workload import behaviours

Act = Callable[..., Any]
Open = Callable[..., Any]

QUICK: dict[str, Any] = {"attempts": 3, "delay": "200ms"}


@pytest.fixture(params=["memory", "real"])
def server(request: pytest.FixtureRequest, nats_server: NatsServer) -> NatsServer | None:
    return nats_server if request.param == "real" else None


@asynccontextmanager
async def _host(
    server: NatsServer | None, act: Act, handler: str = "on_event", **spec: Any
) -> AsyncIterator[tuple[TestHost, str, str]]:
    """A host with one function on a stream of its own; its name and the root of its subjects."""
    name, stream = fresh("f"), fresh("S")
    root = stream.lower()
    behaviours[name] = act
    bound = {} if {"endpoint", "schedule"} & spec.keys() else {"consumer": {"stream": stream}}
    manifest = {
        "streams": {stream: {"subjects": [f"{root}.>"]}},
        "functions": {
            name: {"handler": f"tests.support.workload:{handler}", "retry": QUICK, **bound, **spec}
        },
    }
    async with TestHost(manifest, server=server) as host:
        yield host, name, root


async def test_a_message_is_handled_published_on_and_acknowledged(
    server: NatsServer | None,
) -> None:
    async def act(ctx: Context, event: Event[bytes]) -> None:
        if event.subject.endswith("in"):
            await ctx.publish(f"{event.subject}.out", event.data)

    async with _host(server, act) as (host, name, root):
        await host.publish(f"{root}.in", b"1")
        await host.settled()
        host.assert_acked(name, subject=f"{root}.in", count=1)
        host.assert_acked(name, count=2)
        [sent] = host.assert_published(f"{root}.*.out", b"1", count=1)
        assert (sent.function, sent.kind) == (name, "publish")
        assert not host.dead_letters


async def test_a_failure_is_retried_after_its_delay_and_given_up_on_the_last_attempt(
    server: NatsServer | None,
) -> None:
    async def act(ctx: Context, event: Event[bytes]) -> None:
        raise ValueError("out of stock")

    async with _host(server, act) as (host, name, root):
        await host.publish(f"{root}.in", {"order": 1})
        await host.settled()
        host.assert_retried(name, count=1, reason="out of stock")
        await host.advance("800ms")
        host.assert_retried(name, count=2)
        host.assert_rejected("ATTEMPTS_EXHAUSTED", count=1)
        [letter] = host.dead_letters
        assert (letter.function, letter.attempts, letter.message.data) == (name, 3, b'{"order":1}')
        assert [each.settling.delay_s for each in host.decisions] == [0.2, 0.4, 0]


async def test_a_rejected_message_and_one_that_does_not_fit_are_dead_letters(
    server: NatsServer | None,
) -> None:
    async def act(ctx: Context, batch: Batch[Any]) -> None:
        for order in batch:
            if order.data.number < 0:
                batch.reject(order, "NEGATIVE", "below zero")

    async with _host(server, act, "on_orders", batch={"wait": "50ms"}) as (host, name, root):
        for data in (b"{}", {"number": -1}, {"number": 1}):
            await host.publish(f"{root}.in", data)
        await host.settled()
        host.assert_rejected("NEGATIVE", count=1)
        host.assert_rejected("PAYLOAD_INVALID", count=1)
        host.assert_acked(name, count=1)
        assert sorted(each.code for each in host.dead_letters) == ["NEGATIVE", "PAYLOAD_INVALID"]


async def test_a_batch_gathers_and_a_poison_message_is_isolated(
    server: NatsServer | None,
) -> None:
    sizes: list[int] = []

    async def act(ctx: Context, batch: Batch[bytes]) -> None:
        sizes.append(len(batch))
        if any(event.data == b"poison" for event in batch):
            raise ValueError("poison")

    spec = {"batch": {"size": 4, "wait": "200ms"}, "retry": {"attempts": 1}}
    async with _host(server, act, "on_batch", **spec) as (host, name, root):
        for data in (b"a", b"b", b"poison", b"c"):
            await host.publish(f"{root}.in", data)
        await host.settled()
        host.assert_acked(name, count=3)
        [letter] = host.dead_letters
        assert letter.message.data == b"poison"
        assert max(sizes) > 1


async def test_a_call_that_hangs_runs_into_its_time_limit(server: NatsServer | None) -> None:
    async def act(ctx: Context, event: Event[bytes]) -> None:
        await ctx.stopping.wait()

    async with _host(server, act, timeout="300ms", retry={"attempts": 1}) as (host, _, root):
        await host.publish(f"{root}.in", b"")
        await host.settled()
        host.assert_rejected("TIMEOUT", count=1)


async def test_an_endpoint_answers_or_refuses(server: NatsServer | None) -> None:
    async def act(ctx: Context, event: Event[Any]) -> Any:
        if event.data.number == 13:
            raise Reject("UNLUCKY", "not that one", status=409)
        return {"double": 2 * event.data.number}

    subject = fresh("ask")
    async with _host(server, act, "on_request", endpoint={"subject": subject}) as (host, _, _root):
        assert (await host.request(subject, {"number": 4})).data == b'{"double":8}'
        with pytest.raises(RequestFailed) as refusal:
            await host.request(subject, {"number": 13})
        assert (refusal.value.code, refusal.value.description) == (409, "UNLUCKY")


async def test_a_plain_function_runs_in_a_thread(server: NatsServer | None) -> None:
    seen: list[bytes] = []
    async with _host(server, lambda ctx, event: seen.append(event.data), "on_event_in_thread") as (
        host,
        name,
        root,
    ):
        await host.publish(f"{root}.in", b"1")
        await host.settled()
        host.assert_acked(name, count=1)
    assert seen == [b"1"]


async def test_the_messages_of_one_key_keep_their_order_through_a_retry(
    server: NatsServer | None,
) -> None:
    done: list[bytes] = []

    async def act(ctx: Context, event: Event[bytes]) -> None:
        if event.data == b"a1" and event.attempt == 1:
            raise Retry("not yet", delay_s=0.3)
        done.append(event.data)

    async with _host(server, act, ordered_by={"token": 2}) as (host, name, root):
        for key, data in (("a", b"a1"), ("a", b"a2"), ("b", b"b1")):
            await host.publish(f"{root}.{key}", data)
        await host.settled()
        await host.advance("1s")
        host.assert_acked(name, count=3)
        host.assert_retried(name, count=1)
    assert done.index(b"a1") < done.index(b"a2")
    assert set(done) == {b"a1", b"a2", b"b1"}


async def test_a_repeated_message_id_is_handled_once(server: NatsServer | None) -> None:
    async def act(ctx: Context, event: Event[bytes]) -> None:
        pass

    async with _host(server, act) as (host, name, root):
        for _ in range(2):
            await host.publish(f"{root}.in", b"", msg_id="one")
        await host.settled()
        host.assert_acked(name, count=1)


async def test_a_schedule_runs_when_it_is_due(server: NatsServer | None) -> None:
    due: list[Any] = []

    async def act(ctx: Context) -> None:
        due.append(ctx.due_at)

    async with _host(server, act, "on_tick", schedule={"every": "1s"}) as (host, _, _root):
        await host.advance("2.5s")
        await host.settled()
    assert len(due) in (2, 3)
    assert due == sorted(set(due))


async def test_the_shipped_ingest_runs_in_memory_on_a_real_database(postgres_dsn: str) -> None:
    async with TestHost("manifests/", only=["ingest"], database_url=postgres_dsn) as host:
        await host.publish("telemetry.t1", {"topic": "no topic"})
        await host.settled()
        host.assert_acked("ingest", count=1)
