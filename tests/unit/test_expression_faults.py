"""A bad expression is refused with the place of its fault, and what is expected there."""

import pytest
from pydantic import ValidationError

from functions.domain.delivery_options import DeliveryOptions
from functions.domain.expressions import FUNCTIONS, check_expression, evaluate_sample
from functions.domain.payload_filters import validate_filter
from functions.management.routes import CreateRoute, UpdateRoute

NOT_CEL = "a payload filter is not a CEL expression: "
LOOPS = "a payload filter that loops has up to 256 characters, and neither map nor matches"
USES = "a payload filter may use payload, metrics, topic, tenant_id, device_id, msg_type only: "
LACKS = "a payload filter calls a function that CEL lacks: "
TABLE = [
    ("metrics.temp >", NOT_CEL + "line 1, column 15: the text ends; expected a value"),
    ("1 +\n  ", NOT_CEL + "line 2, column 3: the text ends; expected a value"),
    ("\n\n&& true", NOT_CEL + "line 3, column 1: unexpected '&&'; expected a value"),
    ("'é' == 1 +", NOT_CEL + "line 1, column 11: the text ends; expected a value"),
    ("// why\n1 +", NOT_CEL + "line 2, column 4: the text ends; expected a value"),
    (
        "metrics.t > 20 AND metrics.t < 30",
        NOT_CEL + "line 1, column 16: unexpected 'AND'; expected an operator or the end",
    ),
    ("topic 'x'", NOT_CEL + "line 1, column 7: unexpected ''x''; expected the end"),
    ("payload.a = 3", NOT_CEL + "line 1, column 11: cannot read '= '"),
    ("topic == 'x", NOT_CEL + "line 1, column 10: cannot read ''x'"),
    ("topic == '\\q'", NOT_CEL + "line 1, column 10: cannot read ''\\q'"),
    ("metrics..temp", NOT_CEL + "line 1, column 9: unexpected '..'"),
    ("metrics.temp > 1;", NOT_CEL + "line 1, column 17: cannot read ';'"),
    ("(metrics.a", NOT_CEL + "line 1, column 11: the text ends; expected ')'"),
    ("[1, 2", NOT_CEL + "line 1, column 6: the text ends; expected ',' or ']'"),
    ("payload['a'", NOT_CEL + "line 1, column 12: the text ends; expected ']'"),
    (
        "true ? false",
        NOT_CEL + "line 1, column 13: the text ends; expected an operator or ':'",
    ),
    ("size(", NOT_CEL + "line 1, column 6: the text ends; expected a value or ')'"),
    ("payload.a[", NOT_CEL + "line 1, column 11: the text ends; expected a value or '?'"),
    ("has(topic)", NOT_CEL + "line 1, column 5: invalid argument to has() macro"),
    ("package", NOT_CEL + "line 1, column 1: reserved identifier: package"),
    ("1 > 99999999999999999999", NOT_CEL + "line 1, column 5: invalid int literal"),
    ("[1].all(1, true)", NOT_CEL + "line 1, column 9: argument must be a simple name"),
    ("(" * 200 + "1" + ")" * 200, NOT_CEL + "line 1, column 97: nested too deeply"),
    ("true && password == 'x'", USES + "line 1, column 9: 'password'"),
    ("'foo' == topic && // foo\n payload.foo && foo", USES + "line 2, column 17: 'foo'"),
    ("[1].all(x, true) && y", USES + "line 1, column 21: 'y'"),
    ("f(1) == 'f(2)'", LACKS + "line 1, column 1: 'f'"),
    ("'f(1)' == topic && topic.lowerAscii() == 'a'", LACKS + "line 1, column 26: 'lowerAscii'"),
    ("[1].exists(x)", LACKS + "line 1, column 5: 'exists'"),
    (
        "[1].all(a, true) ||\n[1].exists(b, true)",
        "a payload filter holds at most one of all, exists, exists_one and filter:"
        " line 2, column 4",
    ),
    ("['a'].exists(a, a.matches('a'))", LOOPS + ": line 1, column 18"),
    ("[1].all(a, true)" + " " * 256, LOOPS),
    ("'text'", "a payload filter must return true or false"),
    ("1.size()", "a payload filter calls a function that CEL lacks"),
    (" ", "a payload filter has 1 to 1024 characters"),
]


@pytest.mark.parametrize(("expression", "told"), TABLE)
def test_the_place_and_what_is_expected_are_told(expression: str, told: str) -> None:
    with pytest.raises(ValueError, match="payload filter") as refused:
        validate_filter(expression)
    assert str(refused.value) == told


@pytest.mark.parametrize(
    "expression",
    [
        "metrics.temp >",
        "x" * 1024 + ">",
        "(" * 500,
        "'" + "x" * 1000,
        "unknown_" * 100,
        "f" * 900 + "()",
    ],
)
def test_a_refused_request_tells_the_place_and_neither_internals_nor_the_whole_text(
    expression: str,
) -> None:
    wanted = {"tenant_id": "t", "name": "r", "topic_filter": "#", "destination_config": {}}
    change = {"tenant_id": "t", "route_id": "0b0e0f5c-9f6e-4f0c-8a53-2f5c3f3a7d11"}
    for model, fields in ((CreateRoute, wanted), (UpdateRoute, change)):
        with pytest.raises(ValidationError) as refused:
            model.model_validate({**fields, "payload_filter": expression})
        [error] = refused.value.errors(include_url=False, include_input=False)
        assert error["loc"] == ("payload_filter",)
        assert len(error["msg"]) < 250
        assert not any(word in error["msg"] for word in ("<input>", "EOF", "Context", "ParseError"))


def test_the_place_is_that_in_the_field_of_a_transformation_and_in_an_order_key() -> None:
    with pytest.raises(ValidationError, match=r"field 'b'.*line 2, column 1: unexpected '\*'"):
        DeliveryOptions.model_validate(
            {"transformation": {"fields": {"a": "topic", "b": "1 +\n* 2"}}}
        )


def test_the_engine_has_every_function_that_a_filter_may_call() -> None:
    calls = {
        **{name: f"topic.{name}('a')" for name in ("contains", "endsWith", "startsWith")},
        **{name: f"{name}('1')" for name in ("bytes", "double", "int", "uint", "size")},
        **{name: f"{name}(1)" for name in ("string", "type", "dyn")},
        "duration": "duration('1s')",
        "timestamp": "timestamp('2026-08-01T12:00:00Z')",
        "matches": "topic.matches('a')",
    }
    for name in FUNCTIONS - calls.keys():
        calls[name] = f"timestamp('2026-08-01T12:00:00Z').{name}()"
    assert calls.keys() == FUNCTIONS
    for name, call in calls.items():
        program = check_expression(call, "it")
        assert name in program.functions()
        if name == "matches":
            # It may take seconds, so nothing of it is evaluated when it is saved.
            with pytest.raises(LookupError):
                evaluate_sample(program)
        else:
            evaluate_sample(program)
