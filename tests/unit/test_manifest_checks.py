# ruff: noqa: E501 - a mistake and the exact text it gets read best in one line
from pathlib import Path

import pytest

from tests.unit.manifests import problems_of


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def streams(*entries: str) -> str:
    return "streams:\n" + "".join(f"  {entry}\n" for entry in entries)


def functions(*entries: str) -> str:
    return "functions:\n" + "".join(
        f"  f{at}: {{handler: a:b, {entry}}}\n" for at, entry in enumerate(entries, 1)
    )


QUEUE = streams("Q: {subjects: [q.>], retention: workqueue}")
S = streams("S: {subjects: [s.>]}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            streams("A: {subjects: [a.>]}", "B: {subjects: [x, a.b]}"),
            "m.yaml:3: streams.B.subjects[1]: a.b overlaps a.> of stream A (10065); let each subject belong to one stream only",
        ),
        (
            streams("A: {subjects: [a.*, a.b]}"),
            "m.yaml:2: streams.A.subjects[1]: a.b overlaps a.* of this stream too (10052); let each subject belong to one stream only",
        ),
        (
            streams("MAILBOX: {subjects: [m]}"),
            "m.yaml:2: streams.MAILBOX: the host makes a stream MAILBOX itself; use another name",
        ),
        (
            streams("A: {subjects: [dead_letters.x]}"),
            "m.yaml:2: streams.A.subjects[0]: dead_letters.x overlaps dead_letters.>, which the host keeps for DEAD_LETTERS; use narrower subjects",
        ),
        (
            streams("A: {subjects: [a], max_age: 1ms}"),
            "m.yaml:2: streams.A.max_age: is too short for JetStream; use at least 100ms, or 0s",
        ),
        (
            streams("A: {subjects: [a], max_age: 1m, duplicate_window: 2m}"),
            "m.yaml:2: streams.A.duplicate_window: 120s is longer than max_age (10052); use at most 60s",
        ),
        (
            streams("A: {subjects: [a], consumers: {c: {max_deliver: 0}}}"),
            "m.yaml:2: streams.A.consumers.c.max_deliver: 0 would deliver nothing; use -1 for no limit, or at least 1",
        ),
        (
            streams("S: {subjects: [s.*]}")
            + functions("consumer: {stream: S}, ordered_by: {token: 3}"),
            "m.yaml:4: functions.f1.ordered_by.token: s.* has no part 3; use 1 to 2, or a field of the payload",
        ),
        (
            S
            + functions(
                "consumer: {stream: S}, ordered_by: {token: 1}, "
                "priority_by: {field: p, weights: {a: 2, b: 1}, default: b}"
            ),
            "m.yaml:4: functions.f1.priority_by: has no effect with `ordered_by`, which calls messages in their order; remove one of the two",
        ),
        (
            S + functions("endpoint: {subject: e}, fair_by: {token: 1}"),
            "m.yaml:4: functions.f1.fair_by: has no effect on a function with `endpoint:`; remove it",
        ),
        (
            streams("LEASES: {subjects: [l]}"),
            "m.yaml:2: streams.LEASES: the host makes a stream LEASES itself; use another name",
        ),
        (
            S + functions("consumer: {stream: DEAD_LETTERS}"),
            "m.yaml:4: functions.f1.consumer.filter_subjects: DEAD_LETTERS has the dead letters of all functions, this one's too; name those to read, such as dead_letters.deliver_webhook",
        ),
        (
            S + functions("consumer: {stream: T}"),
            "m.yaml:4: functions.f1.consumer.stream: no manifest declares a stream T; known are S; or declare it under `streams:`",
        ),
        (
            streams("TELEMETRY: {subjects: [t]}") + functions("consumer: {stream: TELEMETRIE}"),
            "m.yaml:4: functions.f1.consumer.stream: no manifest declares a stream TELEMETRIE; did you mean TELEMETRY?; or declare it under `streams:`",
        ),
        (
            S + functions("consumer: {stream: S, filter_subjects: [x.>]}"),
            "m.yaml:4: functions.f1.consumer.filter_subjects[0]: stream S stores nothing on x.>; its subjects are s.>",
        ),
        (
            S + functions("consumer: {stream: S, filter_subjects: [s.*, s.b]}"),
            "m.yaml:4: functions.f1.consumer.filter_subjects[1]: s.b overlaps s.* of the same consumer (10138); keep the wider of the two",
        ),
        (
            S + functions("consumer: {stream: S, durable: d}", "consumer: {stream: S, durable: d}"),
            "m.yaml:5: functions.f2.consumer.durable: durable d of stream S is taken by function f1; give each its own durable: sharing one would split the messages between them",
        ),
        (
            streams("S: {subjects: [s], consumers: {f1: {}}}") + functions("consumer: {stream: S}"),
            "m.yaml:4: functions.f1.consumer.durable: durable f1 of stream S is taken by the stream itself; give each its own durable: sharing one would split the messages between them",
        ),
        (
            QUEUE
            + functions(
                "consumer: {stream: Q, filter_subjects: [q.a.*]}",
                "consumer: {stream: Q, filter_subjects: [q.x, q.*.b]}",
            ),
            "m.yaml:5: functions.f2.consumer.filter_subjects: q.*.b overlaps q.a.* of function f1 on work queue Q (10100); give each consumer of a work queue subjects of its own",
        ),
        (
            QUEUE + functions("consumer: {stream: Q}", "consumer: {stream: Q}"),
            "m.yaml:5: functions.f2.consumer.filter_subjects: q.> overlaps q.> of function f1 on work queue Q (10100); give each consumer of a work queue subjects of its own",
        ),
        (
            QUEUE + functions("consumer: {stream: Q, deliver: new}"),
            "m.yaml:4: functions.f1.consumer.deliver: work queue Q delivers everything (10101); use all",
        ),
        (
            S + functions("consumer: {stream: S, max_deliver: 3}, retry: {attempts: 5}"),
            "m.yaml:4: functions.f1.consumer.max_deliver: the server would give up after 3 deliveries, the retry policy after 5; leave max_deliver out, or use at least 5",
        ),
        (
            S + functions("consumer: {stream: S, max_deliver: 0}"),
            "m.yaml:4: functions.f1.consumer.max_deliver: 0 would deliver nothing; use -1 for no limit, or at least 1",
        ),
        (
            S + functions("consumer: {stream: S}, concurrency: 8, max_in_flight: 4"),
            "m.yaml:4: functions.f1.max_in_flight: 4 messages never keep a concurrency of 8 busy; use at least 8, or a lower concurrency",
        ),
        (
            S + functions("consumer: {stream: S}, batch: {size: 100}, max_in_flight: 50"),
            "m.yaml:4: functions.f1.max_in_flight: 50 messages never fill a batch of 100; use at least 100, or smaller batches",
        ),
        (
            S + functions("consumer: {stream: S, max_ack_pending: 10}, max_in_flight: 50"),
            "m.yaml:4: functions.f1.consumer.max_ack_pending: 10 is less than the function's max_in_flight 50; use at least 50, times the number of hosts",
        ),
        (
            S + functions("consumer: {stream: S, max_ack_pending: 10}, batch: {size: 100}"),
            "m.yaml:4: functions.f1.consumer.max_ack_pending: 10 is less than the function's batch of 100; use at least 100, times the number of hosts",
        ),
        (
            S + functions("consumer: {stream: S, ack_wait: 5s}, batch: {wait: 10s}"),
            "m.yaml:4: functions.f1.batch.wait: 10s is not shorter than ack_wait 5s, so waiting messages would be delivered again; use a shorter wait or a longer ack_wait",
        ),
        (
            functions("endpoint: {subject: e.get}", "endpoint: {subject: e.*, queue_group: other}"),
            "m.yaml:3: functions.f2.endpoint.subject: e.* overlaps e.get of function f1; give each endpoint its own subject: a request must reach one function only",
        ),
        (
            S + functions("endpoint: {subject: s.get}"),
            "m.yaml:4: functions.f1.endpoint.subject: stream S stores s.>, so that a caller on s.get would get the stream's confirmation for an answer; use a subject that no stream stores",
        ),
        (
            functions(
                "endpoint: {subject: a, http: {method: GET, path: '/d/{id}'}}",
                "endpoint: {subject: b, http: {method: GET, path: '/d/{device_id}'}}",
                "endpoint: {subject: c, http: {method: PUT, path: '/d/{id}'}}",
            ),
            "m.yaml:3: functions.f2.endpoint.http.path: GET /d/{device_id} is taken by function f1; use another method or path",
        ),
        (
            functions("endpoint: {subject: a, http: {method: GET, path: '/d/{id'}}"),
            "m.yaml:2: functions.f1.endpoint.http.path: '/d/{id' has unpaired braces; write parameters as {device_id}",
        ),
        (
            functions("endpoint: {subject: a, http: {method: GET, path: '/{id}/{id}'}}"),
            "m.yaml:2: functions.f1.endpoint.http.path: '/{id}/{id}' has a parameter twice; give each its own name",
        ),
        (
            functions("endpoint: {subject: a}, retry: {attempts: 3}"),
            "m.yaml:2: functions.f1.retry: has no effect on a function with `endpoint:`; remove it",
        ),
        *(
            (
                functions(f"{binding}, rate: {{limit: 5/s}}"),
                f"m.yaml:2: functions.f1.rate: has no effect on a function with `{name}:`; remove it",
            )
            for name, binding in [
                ("endpoint", "endpoint: {subject: a}"),
                ("schedule", "schedule: {every: 5s}"),
                ("service", "service: true"),
            ]
        ),
        (
            functions("service: true, timeout: 5s"),
            "m.yaml:2: functions.f1.timeout: has no effect on a function with `service:`; remove it",
        ),
        (
            functions("schedule: {every: 5s}, batch: {size: 5}"),
            "m.yaml:2: functions.f1.batch: has no effect on a function with `schedule:`; remove it",
        ),
    ],
)
def test_entries_that_contradict_each_other_are_refused(text: str, expected: str) -> None:
    assert problems_of(text) == [expected]


@pytest.mark.parametrize(
    "text",
    [
        S + functions("consumer: {stream: S}", "consumer: {stream: S}"),
        S + functions("consumer: {stream: S}, max_in_flight: 4"),
        S + functions("consumer: {stream: S}, rate: {limit: 0.5/m, burst: 3}"),
        S + functions("consumer: {stream: S, ack_wait: 5s}, timeout: 1h"),
        S + functions("consumer: {stream: S, max_deliver: -1}, retry: {attempts: 50}"),
        QUEUE
        + functions(
            "consumer: {stream: Q, filter_subjects: [q.a]}",
            "consumer: {stream: Q, filter_subjects: [q.*.b]}",
        ),
        streams("A: {subjects: [a.b]}", "B: {subjects: [a.c, a.b.>]}"),
        streams("A: {subjects: [a], max_age: 1m}"),
    ],
)
def test_entries_that_get_along_are_accepted(text: str) -> None:
    assert problems_of(text) == []


def test_a_function_on_a_stream_that_is_declared_wrongly_is_not_blamed() -> None:
    text = streams("S: {subjects: [s], replicas: 9}") + functions("consumer: {stream: S}")

    assert problems_of(text) == ["m.yaml:2: streams.S.replicas: 9 is too big; use at most 5"]
