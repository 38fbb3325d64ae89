"""Shadows on a real database: reports of devices, and changes by the management API."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from functions.management import device_tokens, devices, tenants
from functions.shadow.device_requests import ShadowSettings, answer_device
from functions.shadow.endpoints import delete_shadow, get_shadow, update_desired
from runtime import Message
from runtime.resource.postgres import open_pool
from tests.support.calls import Caller, stored

DEVICE = {"tenant_id": "test", "device_id": "d.1"}
SUBJECT = "shadow.test.d//1.reported"
DELTA = "downlinks.test.d//1.shadow.delta"


@pytest.fixture
async def api(postgres_dsn: str) -> AsyncIterator[Caller]:
    pool = await open_pool(postgres_dsn, max_size=8)
    caller = Caller(pool, settings=device_tokens.DeviceSettings(min_token_length=3))
    long_since = {"starts_at": "2000-01-01T00:00:00Z"}
    await caller.ask(tenants.create_tenant, tenant_id="test", subscription=long_since)
    await caller.ask(devices.register_device, **DEVICE, site_id="s1", provision_token="tok")
    caller.settings = ShadowSettings(rate_per_s=1000)
    yield caller
    await pool.close()


def report(sequence: int, payload: dict[str, Any]) -> Message:
    data = json.dumps({"provision_token": "tok", **payload}).encode()
    return stored(SUBJECT, data, sequence, stream="SHADOW")


def report_now(sequence: int, payload: dict[str, Any]) -> Message:
    """A report that is stored now, after every call of the API so far."""
    return replace(report(sequence, payload), stored_at_ns=time.time_ns())


async def sent(api: Caller) -> dict[str, Any]:
    """What waits to be sent, by subject, and leaves the outbox now."""
    rows = await api.pool.fetch("SELECT subject, body FROM delivery_outbox ORDER BY outbox_id")
    await api.pool.execute("DELETE FROM delivery_outbox")
    return {row["subject"]: json.loads(row["body"]) for row in rows}


async def shown(api: Caller) -> tuple[int, dict[str, Any]]:
    document = await api.ask(get_shadow, **DEVICE)
    return document.version, document.state.reported


async def reasons(api: Caller) -> list[str]:
    rows = await api.pool.fetch("SELECT reason FROM quarantine_events ORDER BY sequence")
    return [str(row["reason"]) for row in rows]


async def test_reports_are_merged_and_null_deletes(api: Caller) -> None:
    await api.deliver(answer_device, report(1, {"reported": {"a": {"b": 1, "c": 2}, "d": [1]}}))
    await api.deliver(answer_device, report(2, {"state": {"reported": {"a": {"b": None}}}}))
    assert await shown(api) == (2, {"a": {"c": 2}, "d": [1]})
    assert await reasons(api) == []


async def test_the_enveloped_form_is_taken_too(api: Caller) -> None:
    envelope = {
        "topic": "tenant/test/device/d.1/shadow/reported",
        "payload": {"reported": {"temp": 22}, "provision_token": "tok", "site_id": "s1"},
    }
    message = stored("shadow.test", json.dumps(envelope).encode(), 1, stream="SHADOW")
    await api.deliver(answer_device, message)
    assert await shown(api) == (1, {"temp": 22})


async def test_a_redelivered_report_raises_no_version(api: Caller) -> None:
    for sequence in (1, 2, 1, 2, 1):
        await api.deliver(answer_device, report(sequence, {"reported": {"n": sequence}}))
    assert await shown(api) == (2, {"n": 2})


@pytest.mark.parametrize("repeated", [{"attempt": 2}, {"called_before": True}])
async def test_a_verdict_on_a_report_stands_on_redelivery(
    api: Caller, repeated: dict[str, Any]
) -> None:
    """Redelivered, or handed over or redriven with attempt 1 again."""
    applied = report(1, {"reported": {"n": 1}})
    await api.deliver(answer_device, applied)
    await api.ask(devices.revoke_device, **DEVICE)
    refused = report(2, {"reported": {"n": 2}})
    await api.deliver(answer_device, refused)
    await api.deliver(answer_device, replace(applied, **repeated))
    await api.ask(devices.reactivate_device, **DEVICE)
    await api.deliver(answer_device, replace(refused, **repeated))
    assert await shown(api) == (1, {"n": 1})
    assert await reasons(api) == ["DEVICE_REVOKED"]


async def test_a_late_report_does_not_overwrite_a_newer_one(api: Caller) -> None:
    await api.deliver(answer_device, report(5, {"reported": {"temp": 22, "mode": None}}))
    late = report(3, {"reported": {"temp": 21, "mode": "eco", "fan": 1}})
    for _ in range(2):
        await api.deliver(answer_device, late)
    assert await shown(api) == (2, {"temp": 22, "fan": 1})
    document = await api.ask(get_shadow, **DEVICE)
    times = [document.metadata.reported[key]["timestamp"] for key in ("fan", "temp")]
    assert times[1] - times[0] == 2


async def test_a_stream_that_was_made_anew_goes_on(api: Caller) -> None:
    await api.deliver(answer_device, report(900, {"reported": {"n": 900}}))
    first = report(1, {"reported": {"n": 1}})
    first.stored_at_ns += 3_600_000_000_000
    await api.deliver(answer_device, first)
    assert await shown(api) == (2, {"n": 1})


async def test_a_clock_that_was_put_back_stops_no_report(api: Caller) -> None:
    await api.deliver(answer_device, report(1, {"reported": {"n": 1}}))
    second = report(2, {"reported": {"n": 2}})
    second.stored_at_ns -= 3_600_000_000_000
    await api.deliver(answer_device, second)
    assert await shown(api) == (2, {"n": 2})


async def test_reports_at_once_are_all_counted(api: Caller) -> None:
    reports = [report(n, {"reported": {f"k{n}": n, "last": n}}) for n in range(1, 21)]
    await asyncio.gather(*(api.deliver(answer_device, each) for each in reports))
    version, state = await shown(api)
    assert version == 20
    assert state == {f"k{n}": n for n in range(1, 21)} | {"last": 20}


async def test_a_report_for_another_version_is_refused_for_good(api: Caller) -> None:
    await api.deliver(answer_device, report(1, {"reported": {"n": 1}, "version": 0}))
    wrong = report(2, {"reported": {"n": 2}, "version": 2})
    await api.deliver(answer_device, wrong)
    await api.deliver(answer_device, report(3, {"reported": {"n": 3}, "version": 1}))
    await api.deliver(answer_device, wrong)
    assert await shown(api) == (2, {"n": 3})
    assert await reasons(api) == ["VERSION_CONFLICT"]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"{", "INVALID_JSON"),
        (b"\xff", "INVALID_JSON"),
        (b'{"a":1,"a":2}', "INVALID_JSON"),
        (b"[]", "INVALID_PAYLOAD"),
        (b'{"reported":{"a":1}}', "TOKEN_MISSING"),
        (b'{"reported":{"a":1},"provision_token":"no"}', "TOKEN_INVALID"),
        (b'{"reported":{"a":1},"provision_token":7}', "TOKEN_MISSING"),
        (
            b'{"reported":{"a":1},"provision_token":"tok","site_id":"s2"}',
            "SITE_MISMATCH_REGISTRY_VS_PAYLOAD",
        ),
        (
            b'{"reported":{"a":1},"provision_token":"tok","tenant_id":"other"}',
            "TENANT_MISMATCH_TOPIC_VS_PAYLOAD",
        ),
        (b'{"provision_token":"tok"}', "SHADOW_INVALID"),
        (b'{"provision_token":"tok","reported":[]}', "SHADOW_INVALID"),
        (b'{"provision_token":"tok","reported":{"a":[null]}}', "SHADOW_INVALID"),
        (b'{"provision_token":"tok","reported":{"a":"\\u0000"}}', "SHADOW_INVALID"),
        (b'{"provision_token":"tok","reported":{"a":1},"version":true}', "SHADOW_INVALID"),
        (b'{"provision_token":"tok","reported":{"a":1},"clientToken":{}}', "SHADOW_INVALID"),
        (b'{"provision_token":"tok","state":{"other":{}}}', "SHADOW_INVALID"),
        (b'{"provision_token":"tok","reported":{},"state":{"reported":{}}}', "SHADOW_INVALID"),
        (b'{"provision_token":"tok","reported":{"a":"' + b"x" * 9000 + b'"}}', "PAYLOAD_TOO_LARGE"),
        (b"x" * 8_192, "INVALID_JSON"),
        (b"x" * 8_193, "PAYLOAD_TOO_LARGE"),
    ],
)
async def test_what_cannot_be_accepted_is_kept_byte_by_byte(
    api: Caller, data: bytes, reason: str
) -> None:
    message = stored(SUBJECT, data, 1, stream="SHADOW")
    for _ in range(2):
        await api.deliver(answer_device, message)
    rows = await api.pool.fetch("SELECT reason, payload, device_id FROM quarantine_events")
    assert [tuple(row) for row in rows] == [(reason, data, "d.1")]
    assert await api.refuse(get_shadow, **DEVICE) == ("SHADOW_NOT_FOUND", 404)


@pytest.mark.parametrize("kind", ["telemetry", "commands/ack", "shadow/delta"])
async def test_a_message_on_another_topic_than_reports_changes_no_shadow(
    api: Caller, kind: str
) -> None:
    envelope = {
        "topic": f"tenant/test/device/d.1/{kind}",
        "payload": {"reported": {"fan": 1}, "provision_token": "tok"},
    }
    message = stored("shadow.test", json.dumps(envelope).encode(), 1, stream="SHADOW")
    await api.deliver(answer_device, message)
    assert await reasons(api) == ["BAD_TOPIC_FORMAT"]
    assert await api.refuse(get_shadow, **DEVICE) == ("SHADOW_NOT_FOUND", 404)


async def test_revoked_and_unknown_devices_and_lapsed_subscriptions_are_refused(
    api: Caller,
) -> None:
    unknown = stored("shadow.test.dev9.reported", b'{"reported":{}}', 1, stream="SHADOW")
    await api.deliver(answer_device, unknown)
    await api.ask(devices.revoke_device, **DEVICE)
    await api.deliver(answer_device, report(2, {"reported": {"a": 1}}))
    await api.ask(devices.reactivate_device, **DEVICE)
    await api.pool.execute("UPDATE subscriptions SET expires_at = '2020-01-01Z'")
    await api.deliver(answer_device, report(3, {"reported": {"a": 1}}))
    await api.pool.execute("UPDATE subscriptions SET status = 'SUSPENDED'")
    await api.deliver(answer_device, report(4, {"reported": {"a": 1}}))
    await api.pool.execute(
        "UPDATE subscriptions SET status = 'ACTIVE', starts_at = '2100-01-01Z', expires_at = NULL"
    )
    await api.deliver(answer_device, report(5, {"reported": {"a": 1}}))
    await api.pool.execute("DELETE FROM subscriptions")
    await api.deliver(answer_device, report(6, {"reported": {"a": 1}}))
    assert await reasons(api) == [
        "UNREGISTERED_DEVICE",
        "DEVICE_REVOKED",
        "SUBSCRIPTION_EXPIRED",
        "SUBSCRIPTION_SUSPENDED",
        "NO_SUBSCRIPTION_CAPACITY",
        "NO_SUBSCRIPTION_CAPACITY",
    ]


async def test_a_section_cannot_grow_without_bound(api: Caller) -> None:
    for sequence in range(1, 8):
        content = {"reported": {f"k{sequence}": "x" * 7000}}
        await api.deliver(answer_device, report(sequence, content))
    version, state = await shown(api)
    assert (version, len(state)) == (4, 4)
    assert await reasons(api) == ["SHADOW_TOO_LARGE"] * 3


async def test_the_device_is_sent_what_it_still_has_to_do(api: Caller) -> None:
    await api.deliver(answer_device, report(1, {"reported": {"fan": {"on": False, "level": 1}}}))
    assert DELTA not in await sent(api)
    state = {"desired": {"fan": {"on": True, "level": 1}}}
    document = await api.ask(update_desired, **DEVICE, state=state, client_token="mine")
    assert document.state.delta == {"fan": {"on": True}}
    delta = (await sent(api))[DELTA]
    assert (delta["state"], delta["version"], delta["clientToken"]) == (
        {"fan": {"on": True}},
        2,
        "mine",
    )
    assert delta["metadata"] == {"fan": {"on": document.metadata.desired["fan"]["on"]}}
    await api.deliver(answer_device, report(2, {"reported": {"fan": {"on": True}}}))
    assert (await api.ask(get_shadow, **DEVICE)).state.delta == {}
    assert DELTA not in await sent(api)


async def test_a_device_may_clear_what_is_desired(api: Caller) -> None:
    await api.ask(update_desired, **DEVICE, state={"desired": {"a": 1}})
    done = {"state": {"reported": {"a": 1}, "desired": None}}
    await api.deliver(answer_device, report_now(1, done))
    document = await api.ask(get_shadow, **DEVICE)
    assert (document.state.desired, document.state.reported) == ({}, {"a": 1})


async def test_a_row_of_before_keeps_its_stamps(api: Caller) -> None:
    await api.deliver(answer_device, report(5, {"reported": {"a": {"b": 1}, "c": 2}}))
    await api.deliver(answer_device, report(6, {"reported": {"c": None}}))
    first, second = (report(number, {}).stored_at_ns for number in (5, 6))
    memory = {"written": {"/a/b": first, "/c": second}, "beneath": {"": first, "/a": first}}
    await api.pool.execute(
        "UPDATE device_shadows SET reported_memory = $1::text::jsonb", json.dumps(memory)
    )
    document = await api.ask(get_shadow, **DEVICE)
    assert document.metadata.reported == {"a": {"b": {"timestamp": first // 10**9}}}
    await api.deliver(answer_device, report(4, {"reported": {"a": {"b": 0, "d": 3}, "c": 0}}))
    assert await shown(api) == (3, {"a": {"b": 1, "d": 3}})


async def test_a_change_of_one_section_leaves_the_other_as_it_is(api: Caller) -> None:
    await api.ask(update_desired, **DEVICE, state={"desired": {"a": 1}})
    await api.deliver(answer_device, report_now(1, {"reported": {"b": 1}}))
    await api.ask(update_desired, **DEVICE, state={"desired": {"a": 2}})
    document = await api.ask(get_shadow, **DEVICE)
    assert (document.state.desired, document.state.reported) == ({"a": 2}, {"b": 1})


async def test_a_request_that_was_stored_before_a_call_does_not_overwrite_it(api: Caller) -> None:
    waiting = report_now(1, {"state": {"desired": {"a": "old", "b": 1}, "reported": {"c": 1}}})
    checked = report_now(2, {"state": {"desired": {"a": "old"}}, "version": 1})
    await api.ask(update_desired, **DEVICE, state={"desired": {"a": "new"}})
    await api.deliver(answer_device, waiting)
    document = await api.ask(get_shadow, **DEVICE)
    assert document.state.desired == {"a": "new", "b": 1}
    assert (document.version, document.state.reported) == (2, {"c": 1})
    # With a version the request is refused, as AWS IoT does: the shadow has another one by now.
    await api.deliver(answer_device, checked)
    assert await reasons(api) == ["VERSION_CONFLICT"]
    # Nor does one bring a shadow back that was deleted after it was stored.
    waiting = report_now(3, {"state": {"desired": {"a": "old"}}})
    await api.ask(delete_shadow, **DEVICE)
    await api.deliver(answer_device, waiting)
    assert await api.refuse(get_shadow, **DEVICE) == ("SHADOW_NOT_FOUND", 404)
    await api.deliver(answer_device, report_now(4, {"state": {"desired": {"a": "newer"}}}))
    assert (await api.ask(get_shadow, **DEVICE)).state.desired == {"a": "newer"}


async def test_of_two_changes_for_one_version_one_wins(api: Caller) -> None:
    await api.ask(update_desired, **DEVICE, state={"desired": {"a": 1}})

    async def change(value: int) -> object:
        state = {"desired": {"a": value}}
        try:
            return await api.ask(update_desired, **DEVICE, state=state, version=1)
        except Exception as refusal:  # noqa: BLE001 - compared below
            return getattr(refusal, "status", refusal)

    outcomes = await asyncio.gather(*(change(value) for value in range(5)))
    assert outcomes.count(409) == 4
    assert (await api.ask(get_shadow, **DEVICE)).version == 2


async def test_a_deleted_shadow_goes_on_with_its_version_and_no_old_report_brings_it_back(
    api: Caller,
) -> None:
    await api.deliver(answer_device, report(2, {"reported": {"a": 1}}))
    assert (await api.ask(delete_shadow, **DEVICE)).version == 2
    assert await api.refuse(get_shadow, **DEVICE) == ("SHADOW_NOT_FOUND", 404)
    assert await api.refuse(delete_shadow, **DEVICE) == ("SHADOW_NOT_FOUND", 404)
    await api.deliver(answer_device, report(1, {"reported": {"b": 1}}))
    assert await api.refuse(get_shadow, **DEVICE) == ("SHADOW_NOT_FOUND", 404)
    await api.deliver(answer_device, report_now(3, {"reported": {"c": 1}}))
    assert await shown(api) == (4, {"c": 1})


async def test_shadows_of_unknown_devices_are_not_found(api: Caller) -> None:
    nobody = {"tenant_id": "test", "device_id": "nobody"}
    missing = ("DEVICE_NOT_FOUND", 404)
    assert await api.refuse(get_shadow, **nobody) == missing
    assert await api.refuse(delete_shadow, **nobody) == missing
    assert await api.refuse(update_desired, **nobody, state={"desired": {"a": 1}}) == missing


async def test_a_desired_state_that_no_shadow_can_hold_is_refused(api: Caller) -> None:
    state = {"desired": {"a": [1, None]}}
    refusal = await api.refuse(update_desired, **DEVICE, state=state)
    assert refusal == ("SHADOW_INVALID", 422)


async def test_what_was_applied_is_forgotten_after_some_days(api: Caller) -> None:
    await api.deliver(answer_device, report(1, {"reported": {"a": 1}}))
    later = report(2, {"reported": {"a": 2}})
    later.stored_at_ns += 3 * 86_400 * 10**9
    await api.deliver(answer_device, later)
    assert await api.pool.fetchval("SELECT count(*) FROM device_shadow_requests") == 1
