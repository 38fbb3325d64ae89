import asyncio
from typing import Any

import pytest

from functions.domain.evaluation.values import Answer, Ask, Outcome, Step
from functions.domain.payload_filters import validate_filter
from functions.domain.topic_filters import topic_matches, validate_topic_filter
from tests.support.evaluation import EvaluatorHere

VARIABLES = {
    "payload": {"site_id": "s1"},
    "metrics": {"temp": 22.5, "count": 3, "name": "x"},
    "topic": "tenant/t/device/d/telemetry",
    "tenant_id": "t",
    "device_id": "d",
    "msg_type": "telemetry",
}


@pytest.mark.parametrize(
    ("topic_filter", "topic", "matches"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a/b/c", False),
        ("a/b/c", "a/b", False),
        ("a/+", "a/b", True),
        ("a/+", "a", False),
        ("a/+", "a/b/c", False),
        ("+/+", "a/b", True),
        ("#", "a/b/c", True),
        ("a/#", "a/b/c", True),
        ("a/#", "a", True),
        ("a/#", "ab", False),
        ("a/b/#", "a", False),
        ("+/b/#", "a/b", True),
        ("tenant/+/device/+/telemetry", "tenant/t/device/d/telemetry", True),
        ("tenant/+/device/+/telemetry", "tenant/t/device/d/shadow/reported", False),
        ("tenant/+/device/+/#", "tenant/t/device/d/shadow/reported", True),
    ],
)
def test_a_topic_filter_takes_what_mqtt_says(topic_filter: str, topic: str, matches: bool) -> None:
    validate_topic_filter(topic_filter)
    assert topic_matches(topic_filter, topic) is matches


@pytest.mark.parametrize(
    "text", ["", "a/#/b", "a#", "a/b#", "a/+b", "a+/b", "a b", "a\x00", "x" * 321]
)
def test_an_invalid_topic_filter_is_refused_when_it_is_saved(text: str) -> None:
    with pytest.raises(ValueError, match=r"topic filter|#|\+"):
        validate_topic_filter(text)


@pytest.mark.parametrize(
    ("expression", "accepts"),
    [
        ("metrics.temp > 20", True),
        ("metrics.temp > 20.0 && msg_type == 'telemetry'", True),
        ("metrics.temp > 30", False),
        ("has(metrics.pressure) && metrics.pressure > 1", False),
        ("payload.site_id in ['s1', 's2']", True),
        ("topic.startsWith('tenant/t/') && device_id.matches('^d')", True),
        ("['a', 'd'].exists(x, x == device_id)", True),
        ("metrics.filter(name, name.startsWith('t')).size() == 1", True),
    ],
)
def test_a_payload_filter_says_yes_or_no(expression: str, accepts: bool) -> None:
    validate_filter(expression)
    assert answer(expression) == Answer(Outcome.DONE, (accepts,))


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "  ",
        "1 +",
        "metrics.temp >",
        "foo > 1",
        "password == 'x'",
        "'text'",
        "1",
        "f(1)",
        "metrics.temp > 1" + " " * 1024,
        "(" * 200 + "true" + ")" * 200,
        "[1].all(a, [1].all(b, true))",
        "[1].all(a, true) || [1].exists(b, true)",
        "[1].all(a, [1]. // hidden\n all(b, true))",
        "[1].exists_one(a, [1].existsOne(b, true))",
        "[1].map(a, a) == [1]",
        "['a'].exists(a, a.matches('a'))",
        "[1].all(a, true) && 1 + 1 == 2" + " " * 256,
    ],
)
def test_an_unusable_payload_filter_is_refused_when_it_is_saved(expression: str) -> None:
    with pytest.raises(ValueError, match="filter"):
        validate_filter(expression)


@pytest.mark.parametrize(
    ("expression", "outcome", "reason"),
    [
        ("metrics.pressure > 1", Outcome.MISSING, "the message lacks a field that it reads"),
        ("metrics.name > 1", Outcome.FAILED, "it failed with TypeError"),
        ("metrics.count / 0 > 1", Outcome.FAILED, "it failed with ZeroDivisionError"),
        ("metrics.temp", Outcome.FAILED, "it gave neither true nor false"),
    ],
)
def test_a_missing_field_is_told_apart_from_a_filter_that_fails(
    expression: str, outcome: Outcome, reason: str
) -> None:
    found = answer(expression)
    assert (found.outcome, found.reason) == (outcome, reason)


def test_a_loop_over_a_large_message_is_not_begun() -> None:
    looping = "payload.all(key, payload[key] >= 0)"
    fits = {"payload": dict.fromkeys(map(str, range(255)), 1)}
    assert answer(looping, fits).values == (True,)
    for large in ({str(n): n for n in range(256)}, {"deep": {"list": [1] * 256}}):
        assert "over 256 values" in answer(looping, {"payload": large}).reason


def answer(expression: str, variables: dict[str, Any] | None = None) -> Answer:
    ask = Ask("t", variables or VARIABLES, (Step(expression, "boolean"),))
    [found] = asyncio.run(EvaluatorHere().evaluate([ask]))
    return found
