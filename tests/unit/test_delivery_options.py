"""A route's own schedule, time limit and order key: bounds and values."""

import asyncio
import re
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from functions.domain.delivery_options import DeliveryOptions, OrderKey, OrderKeyText, token_of
from functions.domain.evaluation.values import Ask
from functions.domain.expressions import variables_of
from functions.domain.route_decisions import decide, steps_of
from tests.support.evaluation import EvaluatorHere

DAY_S = 86_400


@pytest.mark.parametrize(
    "stated",
    [
        {},
        {"retry_delays_s": []},
        {"retry_delays_s": [1, 2.5, DAY_S]},
        {"retry_delays_s": [60] * 20},
        {"timeout_s": 1},
        {"timeout_s": 30, "transformation": {"value": "topic"}},
    ],
)
def test_options_within_their_bounds_are_taken(stated: dict[str, Any]) -> None:
    options = DeliveryOptions.model_validate(stated)
    stored = options.model_dump_json(exclude_none=True)
    assert DeliveryOptions.model_validate_json(stored) == options


@pytest.mark.parametrize(
    ("stated", "told"),
    [
        ({"retry_delays_s": [0.5]}, "greater than or equal to 1"),
        ({"retry_delays_s": [DAY_S + 1]}, "less than or equal to 86400"),
        ({"retry_delays_s": [float("nan")]}, "less than or equal"),
        ({"retry_delays_s": [60] * 21}, "at most 20"),
        ({"retry_delays_s": [DAY_S] * 15}, "at most 14 days together"),
        ({"retry_delays_s": "5s"}, "valid tuple"),
        ({"timeout_s": 0.9}, "greater than or equal to 1"),
        ({"timeout_s": 31}, "less than or equal to 30"),
        ({"attempts": 3}, "Extra inputs"),
    ],
)
def test_options_out_of_bounds_are_refused(stated: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        DeliveryOptions.model_validate(stated)


def variables(device_id: str = "d1", **payload: Any) -> dict[str, Any]:
    return variables_of(
        payload,
        topic=f"tenant/t/device/{device_id}/telemetry",
        tenant_id="t",
        device_id=device_id,
        msg_type="telemetry",
    )


@pytest.mark.parametrize(
    ("text", "of", "same_as"),
    [
        ("device_id", variables("d7", a=1), "d7"),
        ("msg_type", variables(), "telemetry"),
        ("payload.customer.id", variables(customer={"id": "c 1.*>"}), "c 1.*>"),
        ("payload.n", variables(n=7), "7"),
        ("device_id + '/' + msg_type", variables(), "d1/telemetry"),
        # Without a key: all such messages of a route share one.
        ("payload.customer.id", variables(), ""),
        ("payload.found", variables(found=[1]), ""),
        ("payload.n / 0", variables(n=7), ""),
    ],
)
def test_the_key_of_a_message_is_a_token_of_its_route(
    text: str, of: dict[str, Any], same_as: str
) -> None:
    key = OrderKey(text, "route-1")
    evaluated = ""
    if steps := steps_of(None, key):
        [answer] = asyncio.run(EvaluatorHere().evaluate([Ask("t", of, steps)]))
        evaluated = decide(steps, answer).key
    token = key.token(of, evaluated)

    assert token == token_of("route-1", same_as)
    assert token != token_of("route-2", same_as)
    assert re.fullmatch(r"[a-z2-7]{24}", token)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "at least 1"),
        ("a.b", "may use payload"),
        ("payload.", "line 1, column 9"),
        ("f(device_id)", "a function that CEL lacks"),
        ("payload.l.exists(x, x > 1)", "no loop"),
        ("device_id.matches('^a') ? 'a' : 'b'", "no matches"),
        ("x" * 1025, "at most 1024"),
    ],
)
def test_an_order_key_that_cannot_be_used_is_refused(text: str, told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        TypeAdapter(OrderKeyText).validate_python(text)
