"""Admission of requests: what one endpoint may have, and that no other endpoint waits for it."""

import asyncio
from collections.abc import Sequence

from functions.outbound.admission import SIGNS, Admission, Limits, Refusal
from functions.outbound.pace import ASSUMED_RATE, FIRST_WINDOW, Result

ORIGIN = "https://host:443"
A, B = ("tenant", "https://host/a"), ("tenant", "https://host/b")


async def admitted(admission: Admission, key: object, count: int) -> None:
    for _ in range(count):
        assert await admission.enter(key, ORIGIN) is None


def leave(admission: Admission, key: object, result: Result | None = "answered") -> None:
    admission.leave(key, ORIGIN, result, connected=True)


async def start_waiting(
    admission: Admission, count: int
) -> Sequence["asyncio.Task[Refusal | None]"]:
    tasks = [asyncio.create_task(admission.enter(A, ORIGIN)) for _ in range(count)]
    await asyncio.sleep(0)
    return tasks


async def test_requests_beyond_the_window_wait_in_order_and_those_beyond_them_are_sent_away() -> (
    None
):
    admission, window = Admission(Limits()), int(FIRST_WINDOW)
    await admitted(admission, A, window)
    waiting = await start_waiting(admission, window)
    refusal = await admission.enter(A, ORIGIN)
    assert refusal is not None
    assert refusal.code == "ENDPOINT_BUSY"
    leave(admission, A)
    await asyncio.sleep(0)
    # The window has grown by one and one place has become free.
    assert [task.done() for task in waiting] == [True, True, False, False]


async def test_a_full_endpoint_delays_no_other() -> None:
    admission = Admission(Limits())
    await admitted(admission, A, int(FIRST_WINDOW))
    await start_waiting(admission, 1)
    assert await admission.enter(B, ORIGIN) is None


async def test_those_that_wait_are_sent_away_when_the_endpoint_fails() -> None:
    admission = Admission(Limits())
    await admitted(admission, A, int(FIRST_WINDOW))
    waiting = await start_waiting(admission, 3)
    leave(admission, A, "failed")
    refusals = await asyncio.gather(*waiting)
    assert [refusal and refusal.code for refusal in refusals] == ["ENDPOINT_BUSY"] * 3


async def test_a_cancelled_request_gives_its_place_to_the_next() -> None:
    admission = Admission(Limits())
    await admitted(admission, A, int(FIRST_WINDOW))
    first, second, third = await start_waiting(admission, 3)
    first.cancel()
    leave(admission, A)
    # The second was woken and not run yet: its place must not be lost either.
    second.cancel()
    results = await asyncio.gather(first, second, third, return_exceptions=True)
    assert results[2] is None
    for _ in range(int(FIRST_WINDOW)):
        leave(admission, A)
    await admitted(admission, A, int(FIRST_WINDOW))


async def test_places_are_never_exceeded_by_a_request_that_comes_before_a_woken_one() -> None:
    admission = Admission(Limits(of_endpoint=4))
    await admitted(admission, A, 4)
    [waiting] = await start_waiting(admission, 1)
    leave(admission, A)
    late = asyncio.create_task(admission.enter(A, ORIGIN))
    assert await waiting is None
    await asyncio.sleep(0)
    assert not late.done()
    leave(admission, A)
    assert await late is None


async def test_an_origin_has_a_bound_of_its_own() -> None:
    admission = Admission(Limits(of_origin=3))
    for number in range(3):
        assert await admission.enter(("tenant", str(number)), ORIGIN) is None
    refusal = await admission.enter(A, ORIGIN)
    assert refusal is not None
    assert refusal.code == "ENDPOINT_BUSY"


async def test_slow_endpoints_of_one_tenant_leave_places_of_their_origin_to_another() -> None:
    admission = Admission(Limits())
    slow = [("slow", str(number)) for number in range(100)]
    for key in slow:
        for _ in range(Limits().of_endpoint):  # Answers come, late; so its window grows.
            if await admission.enter(key, ORIGIN) is None:
                leave(admission, key)
    for _ in range(Limits().of_endpoint):
        for key in slow:
            task = asyncio.create_task(admission.enter(key, ORIGIN))
            await asyncio.sleep(0)
            task.cancel()
    assert await admission.enter(A, ORIGIN) is None


async def test_failures_to_connect_pause_the_origin_and_failing_answers_only_the_endpoint() -> None:
    admission = Admission(Limits(calls=3))
    for _ in range(3):
        await admitted(admission, A, 1)
        leave(admission, A, "failed")
    paused = await admission.enter(A, ORIGIN)
    assert paused is not None
    assert paused.code == "ENDPOINT_PAUSED"
    await admitted(admission, B, 1)
    leave(admission, B)

    for number in range(30):
        if await admission.enter(("other", str(number)), ORIGIN) is None:
            admission.leave(("other", str(number)), ORIGIN, None, connected=False)
    paused = await admission.enter(B, ORIGIN)
    assert paused is not None
    assert paused.code == "ENDPOINT_PAUSED"


async def test_what_a_route_chose_itself_neither_pauses_its_origin_nor_ends_the_pause() -> None:
    admission = Admission(Limits(calls=3))
    result, connected = SIGNS["unconnected"]
    for number in range(9):
        await admitted(admission, ("tenant", str(number)), 1)
        admission.leave(("tenant", str(number)), ORIGIN, result, connected=connected)
    await admitted(admission, A, 1)
    for _ in range(3):
        await admitted(admission, B, 1)
        admission.leave(B, ORIGIN, None, connected=False)
    admission.leave(A, ORIGIN, result, connected=connected)
    paused = await admission.enter(B, ORIGIN)
    assert paused is not None
    assert paused.code == "ENDPOINT_PAUSED"


async def test_an_overloaded_endpoint_gets_fewer_requests() -> None:
    admission = Admission(Limits(calls=100))
    await admitted(admission, A, 1)
    leave(admission, A, "throttled")
    refusal = await admission.enter(A, ORIGIN)
    assert refusal is not None
    assert refusal.code == "ENDPOINT_THROTTLED"
    assert refusal.wait_s >= 0.8


async def test_nothing_is_kept_of_endpoints_that_have_nothing_to_do() -> None:
    admission = Admission(Limits(window_s=0.1))
    for number in range(100):
        await admitted(admission, number, 1)
        leave(admission, number)
    admission._sweep(asyncio.get_running_loop().time() + 1)
    assert admission._endpoints == {}
    assert admission._in_flight_by_origin == {}


async def test_jobs_of_an_endpoint_that_has_not_answered_come_again_soon() -> None:
    admission = Admission(Limits())
    longest_s = await longest_wait_s(admission, [A], 2000)
    assert longest_s <= 2000 / ASSUMED_RATE * 1.2


async def test_endpoints_that_have_not_answered_share_the_rate_at_which_jobs_come_again() -> None:
    admission = Admission(Limits())
    hanging = [("tenant", f"https://host/{number}") for number in range(50)]
    longest_s = await longest_wait_s(admission, hanging, 200)
    # 50 endpoints with 200 jobs each: 20 of each a second.
    assert longest_s >= 200 / (ASSUMED_RATE / 50) * 0.7


async def longest_wait_s(admission: Admission, keys: Sequence[object], jobs: int) -> float:
    """How long the last of so many jobs for each endpoint, none of which answers, stays away."""
    waits_s = []
    for key in keys:
        await admitted(admission, key, int(FIRST_WINDOW))
        waiting = [asyncio.create_task(admission.enter(key, ORIGIN)) for _ in range(jobs)]
        await asyncio.sleep(0)
        sent_away = [task.result() for task in waiting if task.done()]
        waits_s += [refusal.wait_s for refusal in sent_away if refusal is not None]
        for task in waiting:
            task.cancel()
    return max(waits_s)
