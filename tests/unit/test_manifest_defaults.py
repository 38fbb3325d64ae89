# ruff: noqa: E501 - a mistake and the exact text it gets read best in one line

from pathlib import Path

import pytest
from pydantic import SecretStr

from runtime.manifest import read
from tests.unit.manifests import problems_of, read_text


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


API = """
defaults:
  timeout: 10s
  uses: [postgres]
  retry: {attempts: 20, cap: 60s}
  settings: {region: eu, key: {from_env: KEY}}
  endpoint:
    service: shop
    http: {auth: none, status: 201}
  schedule: {timezone: Europe/Vienna}
streams:
  S: {subjects: [s]}
functions:
  ask:
    handler: a:ask
    endpoint: {subject: shop.ask, http: {method: GET, path: /ask, status: 200}}
  hidden:
    handler: a:hidden
    endpoint: {subject: shop.hidden, service: other}
    timeout: 1s
    uses: []
  eat:
    handler: a:eat
    consumer: {stream: S}
    retry: {delay: 5s}
    settings: {region: us}
  tick:
    handler: a:tick
    schedule: {every: 5s}
  report:
    handler: a:report
    schedule: {cron: "0 6 * * *"}
"""


def test_defaults_are_used_where_they_have_an_effect_and_nothing_else_is_written() -> None:
    functions = read_text(API, {"KEY": "secret"}).functions

    ask, hidden, eat = functions["ask"], functions["hidden"], functions["eat"]
    assert (ask.timeout, ask.uses, ask.concurrency) == (10.0, ("postgres",), 16)
    assert ask.endpoint is not None
    assert ask.endpoint.service == "shop"
    assert ask.endpoint.http is not None
    assert (ask.endpoint.http.auth, ask.endpoint.http.status) == ("none", 200)
    assert "retry" not in ask.model_fields_set
    assert hidden.endpoint is not None
    assert (hidden.timeout, hidden.uses, hidden.endpoint.service) == (1.0, (), "other")
    assert hidden.endpoint.http is None
    assert (eat.retry.attempts, eat.retry.delay, eat.retry.cap) == (20, 5.0, 60.0)
    assert eat.settings == {"region": "us", "key": SecretStr("secret")}
    assert functions["tick"].schedule is not None
    assert functions["report"].schedule is not None
    assert functions["report"].schedule.timezone == "Europe/Vienna"


def test_a_value_from_the_defaults_has_the_line_of_the_defaults() -> None:
    positions = read_text(API, {"KEY": "secret"}).positions

    assert positions.where("functions", "ask", "timeout") == "m.yaml:3"
    assert positions.where("functions", "hidden", "timeout") == "m.yaml:20"
    assert positions.where("functions", "eat", "settings", "key") == "m.yaml:6"
    assert positions.field("functions", "ask", "endpoint", "service") == "defaults.endpoint.service"


def test_defaults_are_those_of_their_own_file() -> None:
    Path("a.yaml").write_text(
        "defaults: {timeout: 1s}\nfunctions: {a: {handler: m:a, endpoint: {subject: a}}}\n"
    )
    Path("b.yaml").write_text("functions: {b: {handler: m:b, endpoint: {subject: b}}}\n")

    functions = read([Path("a.yaml"), Path("b.yaml")], {}).functions

    assert (functions["a"].timeout, functions["b"].timeout) == (1.0, 30.0)


def test_a_mistake_in_the_defaults_is_reported_once_and_hides_no_other() -> None:
    assert problems_of("""
defaults:
  timeout: 10
  handler: a:b
  endpoint: {servce: x, subject: y}
  consumer: {stream: "a b", ack_wait: 5s}
functions:
  one: {handler: a:b, endpoint: {subject: one}}
  two: {handler: a:b, endpoint: {subject: two}, concurrency: 0}
  three: {handler: a:b, consumer: {}}
""") == [
        "m.yaml:3: defaults.timeout: 10 is not a duration; write it like 250ms, 30s, 5m, 1h30m or 7d",
        "m.yaml:4: defaults.handler: no such key; known are batch, concurrency, consumer, endpoint, fair_by, http_client, isolate, max_in_flight, max_in_flight_bytes, ordered_by, postgres_connections, priority_by, rate, retry, schedule, settings, start_timeout, timeout, uses",
        "m.yaml:5: defaults.endpoint.servce: no such key; did you mean service?",
        "m.yaml:5: defaults.endpoint.subject: no such key; known are http, max_waiting, queue_group, service",
        "m.yaml:6: defaults.consumer.stream: 'a b' does not fit; use 1 to 64 letters, digits, - or _",
        "m.yaml:9: functions.two.concurrency: 0 is too small; use at least 1",
    ]  # fmt: skip


def test_a_default_without_effect_is_an_error() -> None:
    assert problems_of("""
defaults:
  retry: {attempts: 3}
  endpoint:
    service: x
    http: {auth: none}
  schedule: {missed: once}
functions:
  one: {handler: a:b, endpoint: {subject: one}}
""") == [
        "m.yaml:3: defaults.retry: has no effect on any function of this file; remove it",
        "m.yaml:6: defaults.endpoint.http: has no effect on any function of this file; remove it",
        "m.yaml:7: defaults.schedule: has no effect on any function of this file; remove it",
    ]


def test_a_conflict_of_a_default_names_the_line_of_the_default() -> None:
    assert problems_of("""
defaults:
  consumer: {stream: NONE}
functions:
  one: {handler: a:b, consumer: {}}
  two: {handler: a:b, consumer: {filter_subjects: [a]}}
""") == [
        "m.yaml:3: defaults.consumer.stream: no manifest declares a stream NONE; none is known here; or declare it under `streams:`"
    ]


@pytest.mark.parametrize(
    ("defaults", "expected"),
    [
        ("defaults: 5", "m.yaml:1: defaults: 5 is not a mapping; write `key: value` lines below it"),
        ("defaults: {timeout: '${ABSENT}'}", "m.yaml:1: defaults.timeout: the variable ABSENT is not set; set it, or give a default: ${ABSENT:-…}"),
        ("defaults: {settings: {x: {from_env: A}}}", "m.yaml:1: defaults.settings.x: the variable A is not set; set it to the secret"),
    ],
)  # fmt: skip
def test_defaults_that_cannot_be_read_are_one_problem(defaults: str, expected: str) -> None:
    functions = "\nfunctions: {f: {handler: a:b, endpoint: {subject: a}}}\n"

    assert problems_of(defaults + functions) == [expected]


TRIGGERS = """
defaults: {timeout: 10s}
streams:
  S: {subjects: ["s.>"]}
functions:
  count:
    handler: a:count
    description: Counts
    consumer: {stream: S, ack_wait: 5s}
    retry: {attempts: 2}
    concurrency: 4
    triggers:
      new: {consumer: {filter_subjects: [s.new]}}
      old:
        consumer: {filter_subjects: [s.old], ack_wait: 9s}
        concurrency: 1
        description: Counts again
      asked: {endpoint: {subject: count.ask}}
"""


def test_each_trigger_of_a_handler_is_a_function_that_shares_the_other_keys() -> None:
    functions = read_text(TRIGGERS).functions

    assert functions.keys() == {"count_new", "count_old", "count_asked"}
    new, old, asked = (functions[f"count_{name}"] for name in ("new", "old", "asked"))
    assert new.consumer is not None
    assert old.consumer is not None
    assert (new.consumer.stream, new.consumer.ack_wait) == ("S", 5.0)
    assert new.consumer.durable_of("count_new") == "count_new"
    assert (old.consumer.stream, old.consumer.ack_wait) == ("S", 9.0)
    assert (new.concurrency, old.concurrency, asked.concurrency) == (4, 1, 4)
    assert (new.description, old.description) == ("Counts", "Counts again")
    assert (new.retry.attempts, "retry" in asked.model_fields_set) == (2, False)
    assert asked.consumer is None
    assert {function.handler for function in functions.values()} == {"a:count"}
    assert {function.timeout for function in functions.values()} == {10.0}


def test_a_value_of_a_trigger_has_the_line_and_the_field_as_written() -> None:
    positions = read_text(TRIGGERS).positions

    assert positions.where("functions", "count_old", "consumer", "ack_wait") == "m.yaml:15"
    assert positions.where("functions", "count_old", "consumer", "stream") == "m.yaml:9"
    assert positions.where("functions", "count_new", "handler") == "m.yaml:7"
    assert positions.where("functions", "count_new", "timeout") == "m.yaml:2"
    assert positions.field("functions", "count_old", "consumer", "ack_wait") == (
        "functions.count.triggers.old.consumer.ack_wait"
    )
    assert positions.field("functions", "count_old", "consumer", "stream") == (
        "functions.count.consumer.stream"
    )


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("handler: a:b\n    triggers: {}", ["m.yaml:4: functions.f.triggers: is empty; write a name for each trigger, and its binding below it"]),
        ("handler: a:b\n    triggers: [a]", ["m.yaml:4: functions.f.triggers: a list is not a mapping; write a name for each trigger, and its binding below it"]),
        ("triggers: {x: {endpoint: {subject: x}}}", ["m.yaml:2: functions.f.handler: is missing; add `handler:`"]),
        ("handler: a:b\n    triggers: {x: 5}", ["m.yaml:4: functions.f.triggers.x: 5 is not a mapping; write `key: value` lines below it"]),
        ("handler: a:b\n    triggers: {x: {concurrency: 1}}", ["m.yaml:4: functions.f.triggers.x: no binding found; write exactly one of consumer, endpoint, schedule, service"]),
        ("handler: a:b\n    service: true\n    triggers: {x: {endpoint: {subject: x}}}", ["m.yaml:4: functions.f.service: no such key beside `triggers:`; known are batch, concurrency, consumer, description, endpoint, fair_by, handler, http_client, isolate, max_in_flight, max_in_flight_bytes, ordered_by, postgres_connections, priority_by, rate, retry, schedule, settings, start_timeout, timeout, triggers, uses"]),
        ("handler: a:b\n    triggers: {x: {handlr: c:d, endpoint: {subject: x}}}", ["m.yaml:4: functions.f.triggers.x.handlr: no such key in a trigger; known are batch, concurrency, consumer, description, endpoint, fair_by, http_client, isolate, max_in_flight, max_in_flight_bytes, ordered_by, postgres_connections, priority_by, rate, retry, schedule, settings, start_timeout, timeout, uses"]),
        ("handler: a:b\n    concurrency: 0\n    triggers: {x: {endpoint: {subject: x}}, y: {endpoint: {subject: y}}}", ["m.yaml:4: functions.f.concurrency: 0 is too small; use at least 1"]),
        ("handler: a:b\n    rate: {limit: 1/s}\n    triggers: {x: {endpoint: {subject: x}}}", ["m.yaml:4: functions.f.rate: has no effect on any of the triggers; remove it"]),
        ("handler: a:b\n    triggers: {x: {endpoint: {subject: x}}, y: {endpoint: {subject: x}}}", ["m.yaml:4: functions.f.triggers.y.endpoint.subject: x overlaps x of function f_x; give each endpoint its own subject: a request must reach one function only"]),
        ("handler: a:b\n    triggers: {x: {endpoint: {subject: x}}}\n  f_x: {handler: a:b, endpoint: {subject: y}}", ["m.yaml:5: functions.f_x: the name is taken, first by m.yaml:4; rename one of them or remove it"]),
    ],
)  # fmt: skip
def test_a_mistake_in_triggers_is_reported_at_its_place(entry: str, expected: list[str]) -> None:
    assert problems_of(f"functions:\n  f:\n    {entry}\n") == expected
