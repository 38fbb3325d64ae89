"""Import, claims, rotation and deletion of devices on a real PostgreSQL."""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from functions.domain.admission import judge_token
from functions.domain.device_proof import Claim, Standing, judge_claim
from functions.domain.registry import find_device
from functions.management import devices, subscriptions, tenants
from functions.management.claim_codes import (
    NewClaimCode,
    create_claim_code,
    digest_of_code,
    list_claim_codes,
    revoke_claim_code,
)
from functions.management.claims import ClaimDevice, ClaimedDevice, claim_device
from functions.management.device_import import DeviceImportReport, import_devices
from functions.management.device_tokens import DeviceSettings, hash_token
from runtime import Event, Message, Reject
from runtime.resource.postgres import open_pool
from tests.support.calls import Caller

DEVICE = {"tenant_id": "test", "device_id": "dev1"}
OWN = "a-token-that-the-device-made"


@pytest.fixture
async def api(postgres_dsn: str) -> AsyncIterator[Caller]:
    pool = await open_pool(postgres_dsn, max_size=4)
    caller = Caller(pool, settings=DeviceSettings())
    await caller.ask(tenants.create_tenant, tenant_id="test", subscription={"device_limit": 20_000})
    yield caller
    await pool.close()


async def register(api: Caller, **fields: Any) -> devices.DeviceWithToken:
    return await api.ask(devices.register_device, **{**DEVICE, "site_id": "s1", **fields})


async def send(api: Caller, content: str, **fields: Any) -> DeviceImportReport:
    wanted = {"tenant_id": "test", "format": "csv", "content": content, **fields}
    return await api.ask(import_devices, **wanted)


async def count(api: Caller) -> int:
    found: int = await api.pool.fetchval("SELECT count(*) FROM device_registry")
    return found


async def counted(api: Caller) -> list[tuple[Any, ...]]:
    rows = await api.pool.fetch(
        "SELECT tenant_id, subscription_id, active FROM device_counts WHERE active <> 0"
    )
    return [tuple(row) for row in rows]


async def test_ten_thousand_devices_are_registered_within_ten_seconds(api: Caller) -> None:
    lines = [f"device-{number:05},site-{number % 7}" for number in range(10_000)]
    content = "\n".join(["device_id,site_id", *lines])
    dry = await send(api, content, dry_run=True)
    assert (dry.registered, dry.refused_count, dry.tokens, await count(api)) == (10_000, 0, {}, 0)
    began_s = time.monotonic()
    report = await send(api, content)
    took_s = time.monotonic() - began_s
    assert took_s < 10, took_s
    assert (report.registered, report.existing, report.refused_count) == (10_000, 0, 0)
    assert len(set(report.tokens.values())) == 10_000
    device = await find_device(api.pool, "test", "device-04711")
    assert device is not None
    assert device.token_hash == hash_token(report.tokens["device-04711"])
    assert await counted(api) == [("test", None, 10_000)]
    again = await send(api, content)
    assert (again.registered, again.existing, again.tokens) == (0, 10_000, {})
    assert await count(api) == 10_000


async def test_wrong_rows_are_refused_with_their_lines_and_the_others_registered(
    api: Caller,
) -> None:
    await register(api, device_id="there", site_id="other")
    content = "device_id,site_id\na,s\nb/,s\nthere,s\na,s\nc,s\n"
    report = await send(api, content, first_line=11)
    assert report.registered == 2
    assert set(report.tokens) == {"a", "c"}
    assert [(row.line, row.code) for row in report.refused] == [
        (13, "ROW_INVALID"),
        (14, "DEVICE_EXISTS"),
        (15, "DEVICE_REPEATED"),
    ]


async def test_an_import_stays_within_the_subscription(api: Caller) -> None:
    await api.pool.execute("UPDATE subscriptions SET device_limit = 3")
    await register(api)
    content = "device_id,site_id\n" + "".join(f"d{n},s\n" for n in range(5))
    dry = await send(api, content, dry_run=True)
    report = await send(api, content)
    assert (dry.registered, report.registered, report.refused_count) == (2, 2, 3)
    assert {row.code for row in report.refused} == {"DEVICE_LIMIT_REACHED"}


async def test_imports_at_the_same_time_do_not_exceed_the_subscription(api: Caller) -> None:
    await api.pool.execute("UPDATE subscriptions SET device_limit = 150")
    files = [
        "device_id,site_id\n" + "".join(f"{name}{n},s\n" for n in range(100)) for name in "abc"
    ]
    reports = await asyncio.gather(*(send(api, content) for content in files))
    assert sum(report.registered for report in reports) == 150
    assert await counted(api) == [("test", None, 150)]


async def test_an_import_for_a_tenant_or_file_that_is_none_is_refused(api: Caller) -> None:
    wanted = {"format": "csv", "content": "device_id,site_id\na,s\n"}
    refusal = await api.refuse(import_devices, tenant_id="nobody", **wanted)
    assert refusal == ("TENANT_NOT_FOUND", 404)
    for content in ("", "a,b\n", "device_id,site_id\n" + "d,s\n" * 10_001):
        refused = await api.refuse(import_devices, tenant_id="test", format="csv", content=content)
        assert refused == ("FILE_INVALID", 422)


async def test_nothing_is_registered_whose_tokens_do_not_fit_into_one_answer(api: Caller) -> None:
    content = "device_id,site_id\n" + "".join(f"{'d' * 90}{n:05},s\n" for n in range(9_000))
    refused = await api.refuse(import_devices, tenant_id="test", format="csv", content=content)
    assert refused == ("ANSWER_TOO_LARGE", 422)
    assert await count(api) == 0


async def test_the_number_of_devices_is_kept_whatever_changes(api: Caller) -> None:
    added = await api.ask(subscriptions.create_subscription, tenant_id="test", type="ADDON")
    own = added.subscription_id
    for number in range(4):
        await register(api, device_id=f"d{number}", subscription_id=own if number % 2 else None)
    assert sorted(await counted(api), key=str) == sorted(
        [("test", None, 2), ("test", own, 2)], key=str
    )
    await api.ask(devices.revoke_device, tenant_id="test", device_id="d0")
    await api.ask(devices.revoke_device, tenant_id="test", device_id="d0")
    await api.ask(devices.delete_device, tenant_id="test", device_id="d0")
    await api.ask(devices.delete_device, tenant_id="test", device_id="d1")
    await api.pool.execute("UPDATE device_registry SET subscription_id = NULL")
    assert await counted(api) == [("test", None, 2)]
    await api.ask(devices.revoke_device, tenant_id="test", device_id="d2")
    assert (await api.ask(devices.reactivate_device, tenant_id="test", device_id="d2")).status
    assert await counted(api) == [("test", None, 2)]
    await api.pool.execute("TRUNCATE device_registry CASCADE")
    assert await counted(api) == []
    await register(api)
    await api.pool.execute("DELETE FROM tenants")
    assert await counted(api) == []


async def judged(api: Caller, token: str, at: datetime) -> tuple[Standing, bool]:
    """What the doors and what ingest say of a token at a time."""
    device = await find_device(api.pool, "test", "dev1")
    assert device is not None
    claim = Claim(**DEVICE, token_sha256=hash_token(token).hex())
    at_ns = int(at.timestamp() * 1e9)
    return judge_claim(claim, device, at_ns), judge_token(device, token, at_ns) is None


async def test_a_replaced_token_counts_for_its_overlap(api: Caller) -> None:
    first = (await register(api)).provision_token
    rotated = await api.ask(devices.rotate_token, **DEVICE, overlap_s=600)
    now = datetime.now(UTC)
    assert rotated.previous_token_until is not None
    assert abs(rotated.previous_token_until - now - timedelta(seconds=600)) < timedelta(minutes=1)
    for token in (first, rotated.provision_token):
        assert await judged(api, token, now) == (Standing.PROVEN, True)
    later = now + timedelta(seconds=700)
    assert await judged(api, first, later) == (Standing.UNPROVEN, False)
    assert await judged(api, rotated.provision_token, later) == (Standing.PROVEN, True)
    await api.ask(devices.revoke_device, **DEVICE)
    assert (await judged(api, first, now))[0] is Standing.REVOKED


async def test_of_several_replaced_tokens_only_the_last_one_counts(api: Caller) -> None:
    first = (await register(api)).provision_token
    second = (await api.ask(devices.rotate_token, **DEVICE, overlap_s=600)).provision_token
    third = (await api.ask(devices.rotate_token, **DEVICE, overlap_s=600)).provision_token
    now = datetime.now(UTC)
    assert [(await judged(api, token, now))[1] for token in (first, second, third)] == [
        False,
        True,
        True,
    ]
    assert (await api.ask(devices.rotate_token, **DEVICE)).previous_token_until is None
    assert await judged(api, third, now) == (Standing.UNPROVEN, False)


ENDED = "SELECT proof_ended_at, token_rotated_at FROM device_registry"


async def test_an_overlap_does_not_end_the_sessions_of_the_token_yet(api: Caller) -> None:
    await register(api)
    await api.ask(devices.rotate_token, **DEVICE, overlap_s=600)
    row = await api.pool.fetchrow(ENDED)
    assert row is not None
    assert row["proof_ended_at"] is None
    rotated_at = row["token_rotated_at"]
    # The first overlap is over, and its sessions may not be ended yet.
    await api.pool.execute("UPDATE device_registry SET previous_token_until = now()")
    await api.ask(devices.rotate_token, **DEVICE, overlap_s=600)
    row = await api.pool.fetchrow(ENDED)
    assert row is not None
    assert row["proof_ended_at"] == rotated_at < row["token_rotated_at"]
    # A token that was to count longer ends early.
    await api.ask(devices.rotate_token, **DEVICE, overlap_s=600)
    ended_at = await api.pool.fetchval("SELECT proof_ended_at FROM device_registry")
    assert ended_at > row["token_rotated_at"]


async def test_a_deleted_device_leaves_nothing_but_its_telemetry(api: Caller) -> None:
    await register(api)
    await api.pool.execute(
        "INSERT INTO device_commands"
        " (command_id, tenant_id, device_id, name, expires_at, timeout_s)"
        " SELECT n::text, 'test', 'dev1', 'reboot', now(), 60 FROM generate_series(1, 12000) AS n"
    )
    await api.pool.execute("INSERT INTO device_sensors VALUES ('test', 'dev1', 'temp', now())")
    await api.pool.execute(
        "INSERT INTO telemetry VALUES (now(), 'test', 'dev1', 's', 't', 1, '{}')"
    )
    deleted = await api.ask(devices.delete_device, **DEVICE)
    assert deleted.device_id == "dev1"
    for table in ("device_registry", "device_commands", "device_sensors"):
        assert not await api.pool.fetchval(f"SELECT count(*) FROM {table}"), table  # noqa: S608
    assert await api.pool.fetchval("SELECT count(*) FROM telemetry") == 1
    assert await api.refuse(devices.delete_device, **DEVICE) == ("DEVICE_NOT_FOUND", 404)
    assert (await register(api)).status == "ACTIVE"


async def make_code(api: Caller, **fields: Any) -> NewClaimCode:
    return await api.ask(create_claim_code, tenant_id="test", **fields)


async def claim(api: Caller, code: str, **fields: Any) -> ClaimedDevice:
    message = Message("management.devices.claim", b"", {"Authorization": f"Bearer {code}"})
    wanted = ClaimDevice.model_validate(fields)
    return await claim_device(Event(message, wanted), api.context(message))


async def refuse_claim(api: Caller, code: str, **fields: Any) -> tuple[str, int]:
    try:
        await claim(api, code, **fields)
    except Reject as refusal:
        return refusal.code, refusal.status
    raise AssertionError("the claim was not refused")


async def test_a_code_registers_as_many_devices_as_it_says(api: Caller) -> None:
    code = await make_code(api, site_id="roof", max_claims=2, sensor_limit=5, metadata={"a": 1})
    claimed = await claim(api, code.code.lower().replace("-", ""), device_id="d1")
    assert (claimed.tenant_id, claimed.device_id, claimed.site_id) == ("test", "d1", "roof")
    device = await api.ask(devices.get_device, tenant_id="test", device_id="d1")
    assert (device.metadata, device.sensor_limit) == ({"a": 1}, 5)
    registered = await find_device(api.pool, "test", "d1")
    assert registered is not None
    assert registered.token_hash == hash_token(claimed.provision_token)
    assert await refuse_claim(api, code.code) == ("DEVICE_ID_MISSING", 422)
    assert await refuse_claim(api, code.code, device_id="d1") == ("DEVICE_EXISTS", 409)
    await claim(api, code.code, device_id="d2")
    assert await refuse_claim(api, code.code, device_id="d3") == ("CLAIM_CODE_USED", 409)
    (shown,) = (await api.ask(list_claim_codes, tenant_id="test")).items
    assert (shown.claims, shown.max_claims) == (2, 2)
    assert "code" not in shown.model_dump()


async def test_the_code_of_a_registered_device_gives_it_a_new_token_once(api: Caller) -> None:
    first = (await register(api)).provision_token
    code = (await make_code(api, device_id="dev1")).code
    other = await refuse_claim(api, code, device_id="dev2")
    assert other == ("CLAIM_CODE_OF_ANOTHER_DEVICE", 409)
    claimed = await claim(api, code)
    now = datetime.now(UTC)
    assert await judged(api, claimed.provision_token, now) == (Standing.PROVEN, True)
    assert await judged(api, first, now) == (Standing.UNPROVEN, False)
    assert await refuse_claim(api, code) == ("CLAIM_CODE_USED", 409)


async def test_a_claim_with_a_token_of_the_devices_own_can_be_repeated(api: Caller) -> None:
    code = (await make_code(api, site_id="s")).code
    first = await claim(api, code, device_id="d1", provision_token=OWN)
    assert await claim(api, code, device_id="d1", provision_token=OWN) == first
    other = {"device_id": "d1", "provision_token": f"{OWN}-2"}
    assert await refuse_claim(api, code, **other) == ("CLAIM_CODE_USED", 409)
    assert await refuse_claim(api, code, device_id="d1") == ("CLAIM_CODE_USED", 409)
    await api.ask(devices.revoke_device, tenant_id="test", device_id="d1")
    repeated = {"device_id": "d1", "provision_token": OWN}
    assert await refuse_claim(api, code, **repeated) == ("CLAIM_CODE_USED", 409)


async def test_claims_at_the_same_time_use_a_code_once(api: Caller) -> None:
    code = (await make_code(api, site_id="s")).code

    async def attempt(number: int) -> str:
        try:
            return (await claim(api, code, device_id=f"d{number}")).device_id
        except Reject as refusal:
            return refusal.code

    results = await asyncio.gather(*(attempt(number) for number in range(8)))
    assert sorted(results)[:7] == ["CLAIM_CODE_USED"] * 7
    assert await count(api) == 1


@pytest.mark.parametrize("text", ["", "x", "0000-0000-0000-0000", "U" * 16, "\u0130" * 16])
async def test_what_is_no_code_is_a_wrong_guess(api: Caller, text: str) -> None:
    await make_code(api, site_id="s")
    assert await refuse_claim(api, text, device_id="d1") == ("CLAIM_CODE_INVALID", 403)


async def test_a_code_that_has_ended_tells_so_to_who_has_it(api: Caller) -> None:
    revoked = await make_code(api, site_id="s")
    expired = await make_code(api, site_id="s")
    ended = await api.ask(
        revoke_claim_code, tenant_id="test", claim_code_id=str(revoked.claim_code_id)
    )
    assert ended.revoked_at is not None
    await api.pool.execute(
        "UPDATE claim_codes SET expires_at = now() WHERE claim_code_id = $1", expired.claim_code_id
    )
    for code in (revoked, expired):
        assert await refuse_claim(api, code.code, device_id="d1") == ("CLAIM_CODE_ENDED", 410)
    missing = {"tenant_id": "other", "claim_code_id": str(revoked.claim_code_id)}
    assert await api.refuse(revoke_claim_code, **missing) == ("CLAIM_CODE_NOT_FOUND", 404)


async def test_a_claim_needs_room_and_an_active_tenant_and_device(api: Caller) -> None:
    code = (await make_code(api, site_id="s")).code
    await api.pool.execute("UPDATE subscriptions SET device_limit = 0")
    assert await refuse_claim(api, code, device_id="d1") == ("DEVICE_LIMIT_REACHED", 409)
    await api.pool.execute("UPDATE subscriptions SET device_limit = 9")
    await register(api)
    own = (await make_code(api, device_id="dev1")).code
    await api.ask(devices.revoke_device, **DEVICE)
    assert await refuse_claim(api, own) == ("DEVICE_REVOKED", 409)
    await api.ask(tenants.update_tenant, tenant_id="test", status="SUSPENDED")
    assert await refuse_claim(api, code, device_id="d1") == ("TENANT_SUSPENDED", 409)
    await api.ask(tenants.update_tenant, tenant_id="test", status="ACTIVE")
    await claim(api, code, device_id="d1")


async def test_codes_for_nothing_are_refused_and_their_number_is_bounded(api: Caller) -> None:
    wrong = {"tenant_id": "test", "device_id": "nobody"}
    assert await api.refuse(create_claim_code, **wrong) == ("DEVICE_NOT_FOUND", 404)
    nowhere = {"site_id": "s", "subscription_id": "00000000-0000-0000-0000-000000000000"}
    refused = await api.refuse(create_claim_code, tenant_id="test", **nowhere)
    assert refused == ("SUBSCRIPTION_NOT_FOUND", 404)
    insert = (
        "INSERT INTO claim_codes (tenant_id, code_sha256, site_id, expires_at)"
        " SELECT 'test', sha256(($2::text || n)::bytea), 's', now() + $1::interval"
        " FROM generate_series(1, 1000) AS n"
    )
    await api.pool.execute(insert, timedelta(days=-31), "old")
    await make_code(api, site_id="s")
    assert await api.pool.fetchval("SELECT count(*) FROM claim_codes") == 1
    await api.pool.execute(insert, timedelta(days=1), "new")
    refused = await api.refuse(create_claim_code, tenant_id="test", site_id="s")
    assert refused == ("TOO_MANY_CLAIM_CODES", 409)


async def test_codes_that_ended_or_were_used_up_are_bounded_too(api: Caller) -> None:
    """Whatever ended them: else a tenant that makes and revokes codes fills the disk."""
    await api.ask(tenants.create_tenant, tenant_id="other")
    insert = (
        "INSERT INTO claim_codes (tenant_id, code_sha256, site_id, created_at, revoked_at,"
        " expires_at, claims)"
        " SELECT $1::text, sha256(($1::text || n)::bytea), 's',"
        " '2026-01-01Z'::timestamptz + interval '1 s' * n,"
        " CASE n % 3 WHEN 0 THEN now() END,"
        " CASE n % 3 WHEN 1 THEN now() ELSE '2100-01-01' END, CASE n % 3 WHEN 2 THEN 1 ELSE 0 END"
        " FROM generate_series(1, 6000) AS n"
    )
    for tenant in ("test", "other"):
        await api.pool.execute(insert, tenant)
    oldest = "SELECT min(created_at) FROM claim_codes WHERE tenant_id = 'test'"
    before = await api.pool.fetchval(oldest)
    for _ in range(2):  # A thousand at a time, in case there were far more.
        await make_code(api, site_id="s")
    counts = await api.pool.fetch(
        "SELECT tenant_id, count(*) FROM claim_codes GROUP BY tenant_id ORDER BY tenant_id"
    )
    assert [tuple(row) for row in counts] == [("other", 6000), ("test", 5002)]
    assert await api.pool.fetchval(oldest) > before


def test_a_code_is_read_as_a_person_writes_it() -> None:
    assert digest_of_code("0a1b-2c3d-4e5f-6g7h") == digest_of_code(" OAIB2C3D 4E5F6G7H ")
    assert digest_of_code("0A1B2C3D4E5F6G7") is None
