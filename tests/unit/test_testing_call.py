"""Unit tests of functions by `runtime.testing.call`."""

import time
from typing import Any

import pytest
from pydantic import BaseModel

from runtime import Batch, ConfigError, Context, Event, Reject, Retry
from runtime.testing import TestKitError, call


class Order(BaseModel):
    number: int
    total: float = 1.0


class Settings(BaseModel):
    most: int = 100


async def start(ctx: Context) -> dict[str, int]:
    return {"started": 1}


async def handle(event: Event[Order], ctx: Context[dict[str, int]]) -> None:
    if event.data.total <= 0:
        raise Reject("EMPTY_ORDER", "an order costs something")
    if event.data.number > ctx.settings.most:
        raise Retry("too many", delay_s=3)
    await ctx.publish("orders.accepted", event.raw, headers={"Started": str(ctx.state["started"])})


async def handle_all(batch: Batch[Order], ctx: Context) -> None:
    for event in batch:
        if event.data.total <= 0:
            batch.reject(event, "EMPTY_ORDER")


async def ask(event: Event[Order], ctx: Context) -> dict[str, Any]:
    stock = await ctx.request("stock", event.raw)
    return {"stock": int(stock.data)}


async def tick(ctx: Context) -> None:
    assert ctx.due_at is not None
    await ctx.publish("ticked", b"")


def plain(event: Event[bytes], ctx: Context) -> None:
    raise OSError("disk")


async def test_an_empty_order_is_rejected() -> None:
    result = await call(handle, {"number": 1, "total": 0})
    result.assert_rejected("EMPTY_ORDER")


async def test_the_five_lines_of_a_unit_test_take_under_five_milliseconds() -> None:
    await call(handle, {"number": 1})  # The first call builds the payload's validator.
    took_s = []
    for _ in range(50):
        began_s = time.perf_counter()
        await test_an_empty_order_is_rejected()
        took_s.append(time.perf_counter() - began_s)
    assert sorted(took_s)[25] < 0.005


async def test_an_accepted_order_is_published_with_state_and_settings() -> None:
    result = await call(handle, {"number": 1})
    result.assert_acked()
    [sent] = result.assert_published("orders.*", {"number": 1}, count=1)
    assert sent.headers == {"Started": "1"}
    assert sent.msg_id == "TEST-1-1767225600000000001-handle-1"


async def test_settings_and_spec_are_given_like_in_a_manifest() -> None:
    (await call(handle, {"number": 9}, settings={"most": 8})).assert_retried(delay_s=3)
    last = await call(handle, {"number": 9}, settings={"most": 8}, attempt=2, retry={"attempts": 2})
    last.assert_rejected("ATTEMPTS_EXHAUSTED")
    with pytest.raises(ConfigError, match="most"):
        await call(handle, {"number": 9}, settings={"most": "x"})


async def test_a_payload_passes_through_bytes() -> None:
    (await call(handle, {"number": "x"})).assert_rejected("PAYLOAD_INVALID")
    (await call(handle, b"{")).assert_rejected("PAYLOAD_INVALID")


async def test_a_batch_takes_a_list_and_settles_each() -> None:
    result = await call(handle_all, [{"number": 1}, {"number": 2, "total": 0}])
    assert [each.action for each in result.settled] == ["ack", "dead letter"]
    with pytest.raises(TestKitError, match="handle_all takes a batch: give a list of payloads"):
        await call(handle_all, {"number": 1})


async def test_an_endpoint_is_found_by_its_return_type_and_requests_are_answered() -> None:
    result = await call(ask, {"number": 1}, answers={"stock": b"7"})
    assert result.json() == {"stock": 7}
    refused = await call(ask, {"number": 1})
    refused.assert_rejected("UNAVAILABLE")
    with pytest.raises(AssertionError, match="503 UNAVAILABLE"):
        refused.json()


async def test_a_schedule_is_found_by_its_single_parameter() -> None:
    (await call(tick)).assert_published("ticked", count=1)


async def test_a_plain_function_runs_in_a_thread() -> None:
    (await call(plain)).assert_retried(reason="disk")


async def test_a_failed_assertion_prints_what_happened() -> None:
    result = await call(handle, {"number": 1, "total": 0})
    with pytest.raises(AssertionError) as failed:
        result.assert_acked()
    lines = str(failed.value).splitlines()
    assert lines[:2] == ["expected all acked", "settling decisions:"]
    assert "dead letter EMPTY_ORDER: an order costs something at tests/unit/" in lines[2]


async def test_given_state_takes_the_place_of_start() -> None:
    result = await call(handle, {"number": 1}, state={"started": 5})
    assert result.published()[0].headers == {"Started": "5"}


async def test_a_function_is_found_by_name_in_a_manifest() -> None:
    content = {
        "streams": {"S": {"subjects": ["s"]}},
        "functions": {"f": {"handler": f"{__name__}:handle", "consumer": {"stream": "S"}}},
    }
    (await call("f", {"number": 1}, manifests=content)).assert_acked()
    with pytest.raises(TestKitError, match="no manifest has the function g; functions: f"):
        await call("g", {}, manifests=content)
    with pytest.raises(TestKitError, match="say in which manifests it is"):
        await call("f", {})


@pytest.mark.parametrize("handler", [3, "x".upper, object()])
async def test_what_is_no_function_is_refused(handler: Any) -> None:
    with pytest.raises((TestKitError, ConfigError)):
        await call(handler, b"")
