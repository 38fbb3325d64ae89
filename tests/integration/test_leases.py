"""Leases: one of several hosts does the work, and another takes over when the first fails."""

import asyncio
import time
from typing import Any

import pytest

from runtime.broker.connection import Broker
from runtime.broker.leases import Lease, LeaseBook, with_leases
from runtime.broker.streams import ensure
from tests.support.host import fresh, make_manifest

TTL_S = 1.0


@pytest.fixture
async def name(broker: Broker) -> str:
    """The name of a new lease."""
    function = {
        "handler": "on_event",
        "consumer": {"stream": "LEASED"},
        "ordered_by": {"token": 1},
    }
    manifest = make_manifest({"leased": function}, {"LEASED": {"subjects": ["leased"]}})
    await ensure(broker, with_leases(manifest))
    return fresh("lease")


def _lease(broker: Broker, name: str, ttl_s: float = TTL_S, **state: Any) -> Lease:
    return Lease(LeaseBook(broker, name), ttl_s, lambda: state)


async def test_one_of_many_hosts_takes_a_lease_and_the_next_when_it_is_given_back(
    broker: Broker, name: str
) -> None:
    leases = [_lease(broker, name, ttl_s=60) for _ in range(5)]
    taking = {asyncio.create_task(lease.take()): lease for lease in leases}
    held = []
    while taking:
        done, _ = await asyncio.wait(taking, return_when=asyncio.FIRST_COMPLETED)
        [task] = done
        held.append(taking.pop(task))
        assert [lease for lease in leases if lease.is_held] == [held[-1]]
        await held[-1].give_back()

    assert sorted(map(id, held)) == sorted(map(id, leases))


async def test_a_successor_waits_until_the_lease_of_a_silent_host_expires(
    broker: Broker, name: str
) -> None:
    silent, next_one = _lease(broker, name, notes=["a"]), _lease(broker, name)
    await silent.take()
    await silent.renew()
    began_s = time.monotonic()
    record = await next_one.take()

    assert time.monotonic() - began_s >= TTL_S
    assert record.holder
    assert record.state == {"notes": ["a"]}
    await silent.stop()


async def test_a_renewed_lease_is_not_taken(broker: Broker, name: str) -> None:
    kept, other = _lease(broker, name), _lease(broker, name)
    await kept.take()
    keeping = asyncio.create_task(kept.keep())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(other.take(), 2.5 * TTL_S)
    keeping.cancel()
    await kept.give_back()
    assert not (await other.take()).holder


async def test_a_lease_that_was_taken_ends_at_its_next_renewal(broker: Broker, name: str) -> None:
    first, second = _lease(broker, name), _lease(broker, name)
    await first.take()
    await second.take()
    await asyncio.wait_for(first.keep(), 2 * TTL_S)

    assert (first.is_held, second.is_held) == (False, True)


async def test_a_lease_that_cannot_be_renewed_ends_before_another_host_may_have_it(
    broker: Broker, name: str, nats_server: Any
) -> None:
    cut = await Broker.connect(nats_server.url, name="cut off")
    lease = _lease(cut, name, ttl_s=5 * TTL_S)
    await lease.take()
    began_s = time.monotonic()
    await cut.close()
    await asyncio.wait_for(lease.keep(), 60)

    assert time.monotonic() - began_s < 5 * TTL_S
    assert not lease.is_held


async def test_many_renewals_at_once_are_one_write_after_the_other(
    broker: Broker, name: str
) -> None:
    counted = {"count": 0}
    lease = Lease(LeaseBook(broker, name), 60, lambda: dict(counted))
    await lease.take()
    for number in range(100):
        counted["count"] = number
        await asyncio.gather(*(lease.renew() for _ in range(3)))
        record = await LeaseBook(broker, name).read()
        assert record.state == {"count": number}


async def test_a_lease_given_back_during_a_renewal_is_free_at_once(
    broker: Broker, name: str
) -> None:
    lease = _lease(broker, name, ttl_s=60)
    await lease.take()
    renewing = [asyncio.create_task(lease.renew()) for _ in range(2)]
    for _ in range(4):
        await asyncio.sleep(0)  # The first is in progress, the second waits.
    await lease.give_back()
    await asyncio.gather(*renewing, return_exceptions=True)

    assert not (await asyncio.wait_for(_lease(broker, name, ttl_s=60).take(), 50)).holder


async def test_a_host_that_is_stopped_while_it_takes_a_lease_has_it_to_give_back(
    broker: Broker, name: str
) -> None:
    for turns in range(1, 60):
        lease = _lease(broker, name, ttl_s=60)
        taking = asyncio.create_task(lease.take())
        for _ in range(turns):
            await asyncio.sleep(0)
        taking.cancel()
        await asyncio.gather(taking, return_exceptions=True)
        await lease.give_back()
        assert not (await LeaseBook(broker, name).read()).holder
