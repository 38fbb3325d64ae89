"""Transformations: what a route sends in place of a payload, and what is refused."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest
from pydantic import ValidationError

from functions.domain.evaluation.evaluator import Evaluator
from functions.domain.evaluation.values import Answer, Ask, Outcome
from functions.domain.expressions import variables_of
from functions.domain.transformations import (
    MAX_RESULT_BYTES,
    Transformation,
    TransformationFailed,
    Transformer,
)
from tests.support.evaluation import EvaluatorHere

PAYLOAD = {"site": "s1", "metrics": {"zeta": 1, "temp": 21.5}, "list": [1, 2, 3], "name": "n"}


def variables(payload: Any = PAYLOAD) -> dict[str, Any]:
    of_message = variables_of(
        payload,
        topic="tenant/t/device/d1/telemetry",
        tenant_id="t",
        device_id="d1",
        msg_type="telemetry",
    )
    return {**of_message, "stored_at": "2026-08-01T12:00:00Z", "job_id": "S-1-2-r"}


def applied(payload: Any = PAYLOAD, **stated: Any) -> Any:
    transformer = Transformer(Transformation.model_validate(stated))
    return asyncio.run(transformer.apply(EvaluatorHere(), "t", variables(payload)))


@pytest.mark.parametrize(
    ("stated", "result"),
    [
        ({"fields": {"t": "metrics.temp", "who": "device_id"}}, {"t": 21.5, "who": "d1"}),
        ({"fields": {"f": "metrics.temp * 1.8 + 32.0"}}, {"f": 70.7}),
        ({"fields": {"hot": "metrics.temp > 20.0 ? 'yes' : 'no'"}}, {"hot": "yes"}),
        ({"fields": {"p": "has(metrics.p) ? metrics.p : null"}}, {"p": None}),
        ({"value": "payload.metrics"}, {"zeta": 1, "temp": 21.5}),
        (
            {"value": "{'b': {'z': 1, 'a': stored_at}}"},
            {"b": {"a": "2026-08-01T12:00:00Z", "z": 1}},
        ),
        ({"value": "payload.list.filter(x, x > 1)"}, [2, 3]),
        ({"value": "timestamp(stored_at) + duration('60s')"}, "2026-08-01T12:01:00Z"),
        ({"value": "true"}, True),
        ({"value": "job_id"}, "S-1-2-r"),
    ],
)
def test_a_transformation_picks_and_computes(stated: dict[str, Any], result: Any) -> None:
    assert applied(**stated) == result


def test_the_bytes_are_the_same_on_every_attempt() -> None:
    made = {"value": "{'one': 1, 'two': 2, 'three': {'x': 1, 'y': 2, 'a': 3}}"}
    texts = {json.dumps(applied(**made)) for _ in range(50)}
    assert texts == {'{"one": 1, "three": {"a": 3, "x": 1, "y": 2}, "two": 2}'}
    # What is only picked keeps the device's own order.
    assert json.dumps(applied(value="metrics")) == '{"zeta": 1, "temp": 21.5}'


@pytest.mark.parametrize(
    ("stated", "told"),
    [
        ({}, "exactly one of fields and value"),
        ({"fields": {"a": "topic"}, "value": "topic"}, "exactly one"),
        ({"fields": {}}, "at least 1"),
        ({"fields": {f"f{number}": "topic" for number in range(65)}}, "at most 64"),
        ({"value": "payload.a +"}, r"line 1, column 12: the text ends; expected a value"),
        ({"fields": {"t": "1 +\n* 2"}}, r"the field 't' of a transformation.*line 2, column 1"),
        ({"fields": {"t": "secret"}}, "'t'.*may use payload"),
        ({"fields": {"t": "password == 'x'"}}, "may use payload"),
        ({"fields": {"t": "topic.length"}}, "topic, which is a text"),
        ({"value": "f(1)"}, "a function that CEL lacks"),
        ({"value": "payload.list.map(x, x)"}, "neither map nor matches"),
        (
            {"fields": {"a": "[1].all(a, true)", "b": "[1].all(a, true)"}},
            "at most one of all, exists",
        ),
        ({"fields": {"a": "[1].all(a, true)", "b": "1 + " * 70 + "1"}}, "up to 256 characters"),
        ({"fields": {"a": "1 + " * 130 + "1", "b": "1 + " * 130 + "1"}}, "1024 characters"),
        ({"value": "topic", "code": "import os"}, "Extra inputs"),
        ({"value": "topic", "replaces": "headers"}, "payload"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_place(stated: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=f"(?s){told}"):
        Transformation.model_validate(stated)


@pytest.mark.parametrize(
    ("stated", "payload", "field", "told"),
    [
        ({"fields": {"t": "metrics.temp"}}, {}, "t", "lacks a field"),
        ({"fields": {"t": "metrics.temp"}}, [1], "t", "lacks a field"),
        ({"fields": {"t": "payload.a.b"}}, {"a": 7}, "t", "lacks a field"),
        ({"fields": {"t": "payload.a + 1"}}, {"a": "x"}, "t", "failed with TypeError"),
        ({"value": "1 / payload.a"}, {"a": 0}, "", "failed with ZeroDivisionError"),
        ({"value": "b'abc'"}, {}, "", "a bytes, which JSON lacks"),
        ({"value": "{1: 2}"}, {}, "", "a key that is no text"),
        ({"value": "payload.a"}, {"a": float("nan")}, "", "a value that JSON lacks"),
        ({"value": "payload.a * 2.0"}, {"a": float("inf")}, "", "no finite number"),
        ({"value": "payload"}, {"a": "\ud800"}, "", "a value that JSON lacks"),
        ({"value": "payload"}, {"a": "x" * MAX_RESULT_BYTES}, "", "more than 65536 bytes"),
    ],
)
def test_a_message_that_does_not_fit_is_told_by_its_field(
    stated: dict[str, Any], payload: Any, field: str, told: str
) -> None:
    with pytest.raises(TransformationFailed, match=told) as failed:
        applied(payload, **stated)
    assert (failed.value.field, failed.value.is_undecided) == (field, False)


def test_a_deep_result_is_refused() -> None:
    deep: Any = 1
    for _ in range(40):
        deep = {"a": deep}
    with pytest.raises(TransformationFailed, match="deep"):
        applied({"x": deep}, value="[payload.x]")
    for _ in range(5_000):
        deep = {"a": deep}
    with pytest.raises(TransformationFailed, match="JSON lacks"):
        applied({"x": deep}, value="payload.x")


class Refusing(EvaluatorHere):
    """Answers every ask with one outcome."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__()
        self._outcome = outcome

    async def evaluate(self, asks: Sequence[Ask]) -> list[Answer]:
        return [Answer(self._outcome, reason="because") for _ in asks]


@pytest.mark.parametrize(
    ("outcome", "is_undecided"),
    [
        (Outcome.STOPPED, False),
        (Outcome.UNREADABLE, False),
        (Outcome.OVER_BUDGET, True),
        (Outcome.UNAVAILABLE, True),
    ],
)
def test_what_was_not_evaluated_may_be_tried_again_and_what_was_stopped_may_not(
    outcome: Outcome, is_undecided: bool
) -> None:
    evaluator: Evaluator = Refusing(outcome)
    transformer = Transformer(Transformation(value="1 + payload.a"))
    with pytest.raises(TransformationFailed, match="a transformation: because") as failed:
        asyncio.run(transformer.apply(evaluator, "t", variables()))
    assert failed.value.is_undecided is is_undecided


def test_the_fields_keep_their_order_whether_they_are_paths_or_expressions() -> None:
    made = applied(fields={"b": "1 + 1", "a": "topic", "c": "2 * 3"})
    assert list(made.items()) == [("b", 2), ("a", "tenant/t/device/d1/telemetry"), ("c", 6)]
