# ruff: noqa: E501 - a mistake and the exact text it gets read best in one line

from pathlib import Path

import pytest

from tests.unit.manifests import problems_of

STREAM = "streams:\n  S: {{subjects: [s], {0}}}\n"
FUNCTION = "functions:\n  f: {{handler: a:b, service: true, {0}}}\n"
SCHEDULE = "functions:\n  f: {{handler: a:b, schedule: {{{0}}}}}\n"
ENDPOINT = "functions:\n  f: {{handler: a:b, endpoint: {{{0}}}}}\n"
SERVICE = "functions:\n  f: {{handler: a:b, service: true, {0}}}\n"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("form", "text", "expected"),
    [
        (STREAM, "retention: work", "streams.S.retention: 'work' is not allowed; use 'limits', 'interest' or 'workqueue'"),
        (STREAM, "max_byts: 1", "streams.S.max_byts: no such key; did you mean max_bytes?"),
        (STREAM, "max_age: 60", "streams.S.max_age: 60 is not a duration; write it like 250ms, 30s, 5m, 1h30m or 7d"),
        (STREAM, "max_age: 60 sec", "streams.S.max_age: '60 sec' is not a duration; write it like 250ms, 30s, 5m, 1h30m or 7d"),
        (STREAM, "max_bytes: 1 gig", "streams.S.max_bytes: '1 gig' is not a size; write it like 8192, 64KB, 512MB or 1GiB"),
        (STREAM, "replicas: 7", "streams.S.replicas: 7 is too big; use at most 5"),
        (STREAM, "replicas: 1.5", "streams.S.replicas: 1.5 is not a whole number; write a whole number"),
        (STREAM, "duplicate_window: 10ms", "streams.S.duplicate_window: '10ms' is too small; use at least 0.1s"),
        (STREAM, "consumers: {c: {ack_wiat: 5s}}", "streams.S.consumers.c.ack_wiat: no such key; did you mean ack_wait?"),
        (STREAM, "consumers: {a b: {}}", "streams.S.consumers.a b: 'a b' does not fit; use 1 to 64 letters, digits, - or _"),
        (STREAM, "consumers: [c]", "streams.S.consumers: a list is not a mapping; write `key: value` lines below it"),
        (FUNCTION, "batch: {bytes: 0B}", "functions.f.batch.bytes: '0B' is too small; use at least 1 bytes"),
        (FUNCTION, "timeout: 0s", "functions.f.timeout: '0s' is too small; use more than 0s"),
        (FUNCTION, "concurrency: yes please", "functions.f.concurrency: 'yes please' is not a whole number; write a whole number"),
        (FUNCTION, "retry: {jitter: lots}", "functions.f.retry.jitter: 'lots' is not a number; write a number"),
        (FUNCTION, "retry: {schedule: 5s}", "functions.f.retry.schedule: '5s' is not a list; write it in brackets: [a, b]"),
        (FUNCTION, "retry: 3", "functions.f.retry: 3 is not a mapping; write `key: value` lines below it"),
        (FUNCTION, "ordered_by: {field: a..b}", "functions.f.ordered_by.field: 'a..b' does not fit; write names joined by dots, without spaces, such as customer.id"),
        (FUNCTION, "ordered_by: {}", "functions.f.ordered_by: neither token nor field found; write exactly one of token, field"),
        (FUNCTION, "fair_by: {token: 1, field: a}", "functions.f.fair_by: both token and field found; write exactly one of token, field"),
        (FUNCTION, "fair_by: {token: 0}", "functions.f.fair_by.token: 0 is too small; use at least 1"),
        (FUNCTION, "priority_by: {field: p, weights: {high: 2}, default: high}", "functions.f.priority_by: one level alone found; write at least two under weights"),
        (FUNCTION, "priority_by: {field: p, weights: {high: 2, low: 0}, default: high}", "functions.f.priority_by.weights.low: 0 is too small; use at least 1"),
        (FUNCTION, "priority_by: {field: p, weights: {high: 2, low: 1}, default: bulk}", "functions.f.priority_by: the default 'bulk' is not among the weights; write one of high, low"),
        (FUNCTION, "priority_by: {weights: {high: 2, low: 1}, default: low}", "functions.f.priority_by: neither token nor field found; write exactly one of token, field"),
        (FUNCTION, "http_client: {guard: true, allowed_networks: 10.0.0.0/99}", "functions.f.http_client.allowed_networks: '10.0.0.0/99' does not appear to be an IPv4 or IPv6 network; write networks such as 10.0.0.0/8"),
        (FUNCTION, "http_client: {allowed_networks: 10.0.0.0/8}", "functions.f.http_client: allowed_networks found without guard; without a guard every address is allowed: write guard: true"),
        (FUNCTION, "rate: 50/s", "functions.f.rate: '50/s' is not a mapping; write `key: value` lines below it"),
        (FUNCTION, "rate: {burst: 5}", "functions.f.rate.limit: is missing; add `limit:`"),
        (FUNCTION, "rate: {limit: 50}", "functions.f.rate.limit: 50 is not a rate; write it like 50/s, 100/m, 2000/h or 10/d"),
        (FUNCTION, "rate: {limit: 50 per second}", "functions.f.rate.limit: '50 per second' is not a rate; write it like 50/s, 100/m, 2000/h or 10/d"),
        (FUNCTION, "rate: {limit: -1/s}", "functions.f.rate.limit: '-1/s' is not a rate; write it like 50/s, 100/m, 2000/h or 10/d"),
        (FUNCTION, "rate: {limit: 0/m}", "functions.f.rate.limit: '0/m' would let nothing through; use `runtime pause` for that"),
        (FUNCTION, "rate: {limit: 1000001/s}", "functions.f.rate.limit: '1000001/s' is too big; use at most 1000000/s"),
        (FUNCTION, "rate: {limit: 50/s, burst: 0}", "functions.f.rate.burst: 0 is too small; use at least 1"),
        (FUNCTION, "rate: {limit: 50/s, bust: 5}", "functions.f.rate.bust: no such key; did you mean burst?"),
        (FUNCTION, "uses: [postgres, redis]", "functions.f.uses[1]: 'redis' is not allowed; use 'postgres', 'http' or 'nats_system'"),
        (FUNCTION, "description: 5", "functions.f.description: 5 is not text; put it in quotes, or write a name"),
        (FUNCTION, "description: {from_env: X}", "functions.f.description: a secret by reference cannot stand here; use one under `settings:` only"),
        (SCHEDULE, "missed: once", "functions.f.schedule: neither every nor cron found; write exactly one of every, cron"),
        (SCHEDULE, "every: 5m, cron: '* * * * *'", "functions.f.schedule: both every and cron found; write exactly one of every, cron"),
        (SCHEDULE, "every: 5m, timezone: UTC", "functions.f.schedule: timezone has no effect with every; remove it, or use cron"),
        (SCHEDULE, "every: 100ms", "functions.f.schedule.every: '100ms' is too small; use at least 1s"),
        (SCHEDULE, "every: 5m, missed: all", "functions.f.schedule.missed: 'all' is not allowed; use 'skip' or 'once'"),
        (SCHEDULE, "cron: '61 * * * *'", "functions.f.schedule.cron: '61 * * * *' is not a cron expression: bad minute; write minute, hour, day of month, month and day of week, such as '*/5 * * * *'"),
        (SCHEDULE, "cron: '@daily'", "functions.f.schedule.cron: '@daily' does not have the five fields of cron; write minute, hour, day of month, month and day of week, such as '*/5 * * * *'"),
        (SCHEDULE, "cron: '0 0 */30 2 MON#5'", "functions.f.schedule.cron: '0 0 */30 2 MON#5' is never due; write a day that some month has"),
        (SCHEDULE, "cron: '* * * * *', timezone: Europe/Wien", "functions.f.schedule.timezone: 'Europe/Wien' is not a time zone; did you mean Europe/Vienna?"),
        (SERVICE, "links: {A very long name: 'http://a'}", "functions.f.links.A very long name: 'A very long name' does not fit; use 1 to 11 letters, digits, blanks, - or _"),
        (SERVICE, "links: {Docs: 'a b'}", "functions.f.links.Docs: 'a b' does not fit; write an address such as http://127.0.0.1:8080/docs"),
        (ENDPOINT, "subject: a b", "functions.f.endpoint.subject: 'a b' does not fit; write parts joined by dots, without spaces, such as telemetry.>"),
        (ENDPOINT, "subject: a.>.b", "functions.f.endpoint.subject: 'a.>.b' has a > in the middle; > may only be the last part"),
        (ENDPOINT, "queue_group: a", "functions.f.endpoint.subject: is missing; add `subject:`"),
        (ENDPOINT, "subject: a, queue_group: a b", "functions.f.endpoint.queue_group: 'a b' does not fit; write it without spaces"),
        (ENDPOINT, "subject: a, http: {method: GIT, path: /x}", "functions.f.endpoint.http.method: 'GIT' is not allowed; use 'GET', 'POST', 'PUT', 'PATCH' or 'DELETE'"),
        (ENDPOINT, "subject: a, http: {method: GET, path: x}", "functions.f.endpoint.http.path: 'x' does not fit; write a path such as /api/v1/devices/{device_id}"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named_with_what_would_be_right(
    form: str, text: str, expected: str
) -> None:
    assert problems_of(form.format(text)) == [f"m.yaml:2: {expected}"]


def test_an_entry_needs_its_required_fields() -> None:
    assert problems_of("streams:\n  S: {}\nfunctions:\n  f: {service: true}\n") == [
        "m.yaml:2: streams.S.subjects: is missing; add `subjects:`",
        "m.yaml:4: functions.f.handler: is missing; add `handler:`",
    ]


def test_a_stream_needs_a_subject() -> None:
    assert problems_of("streams:\n  S:\n    subjects: []\n") == [
        "m.yaml:3: streams.S.subjects: is empty; give at least 1"
    ]


@pytest.mark.parametrize("handler", ["functions.ingest", "a:b:c", "functions/ingest.py:f", ".a:b"])
def test_a_handler_is_a_module_and_an_attribute(handler: str) -> None:
    assert problems_of(f"functions:\n  f:\n    handler: '{handler}'\n    service: true\n") == [
        f"m.yaml:3: functions.f.handler: {handler!r} does not fit; write module:attribute, such as"
        " functions.ingest:ingest"
    ]


def test_a_name_is_one_that_nats_takes() -> None:
    assert problems_of("streams:\n  my.stream: {subjects: [s]}\n") == [
        "m.yaml:2: streams.my.stream: 'my.stream' does not fit; use 1 to 64 letters, digits, - or _"
    ]


def test_a_long_value_is_shortened_and_a_long_text_refused() -> None:
    long = "x" * 300
    [pattern] = problems_of(f"functions:\n  f: {{service: true, handler: {long}}}\n")
    [length] = problems_of(f"functions:\n  f: {{handler: a:b, endpoint: {{subject: {long}}}}}\n")

    assert pattern.startswith("m.yaml:2: functions.f.handler: 'xxx")
    assert len(pattern) < 200
    assert length == (
        "m.yaml:2: functions.f.endpoint.subject: is too long; use at most 255 characters"
    )


def test_a_migration_is_a_dotted_module_name() -> None:
    assert problems_of("migrations:\n  backbone: functions/migrations\n") == [
        "m.yaml:2: migrations.backbone: 'functions/migrations' does not fit; write a module's dotted"
        " name, such as functions.domain.migrations"
    ]
