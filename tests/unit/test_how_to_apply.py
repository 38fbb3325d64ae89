"""How a new version of a function replaces the one that runs, for every field of a manifest."""

from dataclasses import replace
from typing import Any

import pytest

from runtime.deployments.how_to_apply import How, Keep, Rebind, Restart, Swap, how_to_apply
from runtime.loader import Function, load
from runtime.manifest.model import (
    ConsumerBindingSpec,
    EndpointBindingSpec,
    FunctionSpec,
    ScheduleBindingSpec,
)

CONSUMER: dict[str, Any] = {"handler": "on_event", "consumer": {"stream": "S"}}
PRIORITY = {"field": "p", "weights": {"high": 8, "bulk": 1}, "default": "bulk"}
BATCH: dict[str, Any] = {"handler": "on_batch", "consumer": {"stream": "S"}}
ENDPOINT: dict[str, Any] = {"handler": "on_request", "endpoint": {"subject": "ask"}}
SCHEDULE: dict[str, Any] = {"handler": "on_tick", "schedule": {"every": "1h"}}
SERVICE: dict[str, Any] = {"handler": "run", "service": True}
CRON: dict[str, Any] = {"handler": "on_tick", "schedule": {"cron": "0 * * * *"}}
KEPT, CALLS, STARTS = Keep(), Swap(starts=False), Swap(starts=True)
BOUND = Rebind(starts=False)

CHANGES: list[tuple[dict[str, Any], str, Any, How]] = [
    # What a call reads.
    (CONSUMER, "retry", {"attempts": 9}, CALLS),
    (CONSUMER, "timeout", "9s", CALLS),
    (CONSUMER, "start_timeout", "9s", CALLS),
    (CONSUMER, "description", "another", CALLS),
    (ENDPOINT, "retry", {"attempts": 9}, CALLS),
    (ENDPOINT, "timeout", "9s", CALLS),
    (ENDPOINT, "description", "another", CALLS),
    (SCHEDULE, "retry", {"attempts": 9}, CALLS),
    (SERVICE, "description", "another", CALLS),
    # What the scope holds.
    (CONSUMER, "uses", ["http"], STARTS),
    (CONSUMER, "postgres_connections", 2, STARTS),
    (CONSUMER, "http_client", {"guard": True}, STARTS),
    (ENDPOINT, "uses", ["http"], STARTS),
    (SERVICE, "uses", ["http"], Restart()),
    # What the binding is built from.
    (CONSUMER, "concurrency", 3, BOUND),
    (CONSUMER, "max_in_flight", 3, BOUND),
    (CONSUMER, "max_in_flight_bytes", "1MB", BOUND),
    (CONSUMER, "rate", {"limit": "10/s"}, BOUND),
    (CONSUMER, "ordered_by", {"token": 2}, BOUND),
    (CONSUMER, "fair_by", {"token": 2}, BOUND),
    (CONSUMER, "priority_by", PRIORITY, BOUND),
    (BATCH, "batch", {"size": 7}, BOUND),
    (ENDPOINT, "concurrency", 3, BOUND),
    (SCHEDULE, "concurrency", 3, BOUND),
    (CONSUMER, "consumer.stream", "T", BOUND),
    (CONSUMER, "consumer.durable", "other", BOUND),
    (CONSUMER, "consumer.filter_subjects", ["s.a"], BOUND),
    (CONSUMER, "consumer.deliver", "new", BOUND),
    (CONSUMER, "consumer.ack_wait", "9s", BOUND),
    (CONSUMER, "consumer.max_ack_pending", 9, BOUND),
    (CONSUMER, "consumer.max_deliver", 9, BOUND),
    (CONSUMER, "consumer.description", "another", BOUND),
    (ENDPOINT, "endpoint.subject", "other", BOUND),
    (ENDPOINT, "endpoint.service", "other", BOUND),
    (ENDPOINT, "endpoint.queue_group", "other", BOUND),
    (ENDPOINT, "endpoint.max_waiting", 9, BOUND),
    (ENDPOINT, "endpoint.description", "another", CALLS),
    (ENDPOINT, "endpoint.http", {"method": "GET", "path": "/x"}, CALLS),
    (SCHEDULE, "schedule.every", "2h", BOUND),
    (SCHEDULE, "schedule.missed", "once", BOUND),
    (SCHEDULE, "schedule.at_start", True, BOUND),
    (CRON, "schedule.cron", "1 * * * *", BOUND),
    (CRON, "schedule.timezone", "Europe/Vienna", BOUND),
    # What runs in no call and in no binding.
    (CONSUMER, "isolate", True, KEPT),
    (CONSUMER, "links", {"docs": "https://example.com"}, KEPT),
    (CONSUMER, "needs", ["other"], KEPT),
    (SERVICE, "timeout", "9s", CALLS),
    (SERVICE, "concurrency", 3, KEPT),
]
OTHERWISE = {"handler", "settings", "consumer", "endpoint", "schedule", "service"}
"""Fields that the tests below change, or whose own fields are in the table."""


def _function(spec: dict[str, Any], **fields: Any) -> Function:
    stated = {**spec, **fields, "handler": f"tests.support.workload:{spec['handler']}"}
    return load("work", FunctionSpec.model_validate(stated))


@pytest.mark.parametrize(("spec", "field", "value", "how"), CHANGES)
def test_a_changed_field_is_applied_where_it_is_read(
    spec: dict[str, Any], field: str, value: Any, how: How
) -> None:
    kind, _, inner = field.partition(".")
    fields = {kind: {**spec[kind], inner: value}} if inner else {field: value}

    assert how_to_apply(_function(spec), _function(spec, **fields)) == how


@pytest.mark.parametrize(
    ("model", "prefix"),
    [
        (FunctionSpec, ""),
        (ConsumerBindingSpec, "consumer."),
        (EndpointBindingSpec, "endpoint."),
        (ScheduleBindingSpec, "schedule."),
    ],
)
def test_the_table_has_every_field_of_a_function_in_a_manifest(model: Any, prefix: str) -> None:
    stated = {field for _, field, _, _ in CHANGES}
    fields = {f"{prefix}{name}" for name in model.model_fields}

    assert fields - stated - OTHERWISE == set()


@pytest.mark.parametrize("spec", [CONSUMER, BATCH, ENDPOINT, SCHEDULE, SERVICE])
def test_an_equal_version_changes_nothing(spec: dict[str, Any]) -> None:
    assert how_to_apply(_function(spec), _function(spec)) == KEPT


@pytest.mark.parametrize(
    ("spec", "how"),
    [(CONSUMER, STARTS), (ENDPOINT, STARTS), (SCHEDULE, STARTS), (SERVICE, Restart())],
)
@pytest.mark.parametrize(
    "changed",
    [
        {"code_version": "0123456789ab"},
        {"handler": lambda *_: None},
        {"start": lambda _: None},
        {"stop": lambda _: None},
        {"hand_over": lambda _: None},
        {"settings": object()},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_other_code_or_settings_get_a_scope_of_their_own(
    spec: dict[str, Any], how: How, changed: dict[str, Any]
) -> None:
    old = _function(spec)

    assert how_to_apply(old, replace(old, **changed)) == how


def test_a_method_that_was_looked_up_again_is_the_same_code() -> None:
    class Shop:
        def place(self) -> None: ...

    shop = Shop()
    old = replace(_function(CONSUMER), handler=shop.place)

    assert how_to_apply(old, replace(old, handler=shop.place)) == KEPT


def test_code_and_binding_may_change_together() -> None:
    old = _function(CONSUMER)
    new = replace(_function(CONSUMER, concurrency=3), code_version="0123456789ab")

    assert how_to_apply(old, new) == Rebind(starts=True)


def test_a_handler_of_another_shape_gets_a_binding_of_its_own() -> None:
    assert how_to_apply(_function(CONSUMER), _function(BATCH)) == Rebind(starts=True)


def test_a_handler_that_became_plain_is_swapped() -> None:
    plain = _function({**CONSUMER, "handler": "on_event_in_thread"})

    assert how_to_apply(_function(CONSUMER), plain) == STARTS


def test_a_function_of_another_kind_begins_anew() -> None:
    assert how_to_apply(_function(CONSUMER), _function(ENDPOINT)) == Restart()
