"""Functions of the management API on a real database."""

import base64
import hashlib
import json
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from pydantic import SecretStr, ValidationError

from functions.domain.paging import write_cursor
from functions.domain.quarantine import Refusal, quarantine
from functions.domain.registry import find_device
from functions.domain.secret_box import SecretBox
from functions.domain.topics import Topic
from functions.management import (
    certificates,
    deliveries,
    delivery_options,
    device_tokens,
    devices,
    routes,
    subscriptions,
)
from functions.management import quarantine as refused
from functions.management import telemetry as measured
from functions.management import tenants as owners
from functions.management.stored_destinations import RouteSettings, StoredDestinations
from functions.outbound.endpoint import WebhookDestination
from functions.route_delivery.announcement import Announcement
from runtime import Message
from runtime.loader.payload import encode
from runtime.resource.postgres import open_pool
from tests.support.calls import STORED_AT_NS, Caller

DEVICE = {"tenant_id": "test", "device_id": "dev1"}
LONG_TOKEN = "a-token-of-more-than-16-letters"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
DAY = datetime(2026, 11, 20, tzinfo=UTC)


@pytest.fixture
async def api(postgres_dsn: str) -> AsyncIterator[Caller]:
    pool = await open_pool(postgres_dsn, max_size=4)
    caller = Caller(pool, settings=device_tokens.DeviceSettings())
    schema = WebhookDestination.model_json_schema()
    await Announcement(pool, "webhook", schema, structlog.get_logger()).start()
    await caller.ask(owners.create_tenant, tenant_id="test", name="Test")
    yield caller
    await pool.close()


ROUTE_SETTINGS = RouteSettings(secrets_keys=SecretStr("k" * 32))


async def secrets_in_clear(api: Caller) -> dict[str, Any]:
    """The configuration of the only route, as a deliverer reads it."""
    row = await api.pool.fetchrow("SELECT *, destination_config::text FROM message_routes")
    assert row is not None
    stored = StoredDestinations({}, SecretBox(["k" * 32]))
    return stored.read(row)


async def register(api: Caller, **fields: Any) -> devices.DeviceWithToken:
    wanted = {**DEVICE, "site_id": "s1", "provision_token": LONG_TOKEN, **fields}
    return await api.ask(devices.register_device, **wanted)


async def add_route(api: Caller, **fields: Any) -> routes.RouteWithSecret:
    api.settings = ROUTE_SETTINGS
    wanted = {
        "tenant_id": "test",
        "name": "hook",
        "topic_filter": "tenant/test/device/+/telemetry",
        "destination_config": {"url": "https://example.org/in"},
        **fields,
    }
    return await api.ask(routes.create_route, **wanted)


async def test_a_new_tenant_has_an_active_main_subscription(api: Caller) -> None:
    page = await api.ask(subscriptions.list_subscriptions, tenant_id="test")
    assert [(item.type, item.status, item.expires_at) for item in page.items] == [
        ("MAIN", "ACTIVE", None)
    ]


async def test_a_tenant_may_come_without_a_subscription(api: Caller) -> None:
    await api.ask(owners.create_tenant, tenant_id="bare", subscription=None)
    page = await api.ask(subscriptions.list_subscriptions, tenant_id="bare")
    assert page.items == []


async def test_creating_a_tenant_again_is_the_same_tenant_or_a_conflict(api: Caller) -> None:
    again = {"tenant_id": "test", "name": "Test"}
    assert (await api.ask(owners.create_tenant, **again)).tenant_id == "test"
    page = await api.ask(subscriptions.list_subscriptions, tenant_id="test")
    assert len(page.items) == 1
    refusal = await api.refuse(owners.create_tenant, tenant_id="test", name="Other")
    assert refusal == ("TENANT_EXISTS", 409)


@pytest.mark.parametrize(
    ("subscription", "is_same"),
    [
        ({}, True),
        ({"device_limit": 100, "type": "MAIN"}, True),
        ({"device_limit": 101}, False),
        ({"status": "TRIAL"}, False),
        ({"type": "ADDON"}, False),
        ({"expires_at": "2030-01-01T00:00:00Z"}, False),
        ({"starts_at": "2020-01-01T00:00:00Z"}, False),
        (None, False),
    ],
)
async def test_creating_a_tenant_again_with_another_subscription_is_a_conflict(
    api: Caller, subscription: dict[str, Any] | None, is_same: bool
) -> None:
    again = {"tenant_id": "test", "name": "Test", "subscription": subscription}
    if is_same:
        assert (await api.ask(owners.create_tenant, **again)).tenant_id == "test"
    else:
        assert await api.refuse(owners.create_tenant, **again) == ("TENANT_EXISTS", 409)


WHOLE = {"a": 1e20, "b": [1e23, -1e19, 1e300], "c": {"d": 1e16, "e": 2**63 - 1, "f": 0.5}}


async def test_whole_floats_beyond_64_bits_are_returned_as_they_came(api: Caller) -> None:
    first = await register(api, metadata=WHOLE)
    assert first.metadata == WHOLE
    assert isinstance(first.metadata["a"], float)
    assert await register(api, metadata=WHOLE) == first
    assert orjson.loads(orjson.dumps((await api.ask(devices.get_device, **DEVICE)).metadata))
    tenant = {"tenant_id": "floats", "metadata": WHOLE}
    made = await api.ask(owners.create_tenant, **tenant)
    assert made.metadata == WHOLE
    assert await api.ask(owners.create_tenant, **tenant) == made


async def test_tenants_are_listed_in_pages_and_changed(api: Caller) -> None:
    for number in range(4):
        await api.ask(owners.create_tenant, tenant_id=f"t{number}")
    seen: list[str] = []
    cursor = None
    while True:
        page = await api.ask(owners.list_tenants, limit=2, cursor=cursor)
        seen += [tenant.tenant_id for tenant in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == ["t0", "t1", "t2", "t3", "test"]
    changed = await api.ask(owners.update_tenant, tenant_id="t0", status="SUSPENDED")
    assert changed.status == "SUSPENDED"
    shown = await api.ask(owners.get_tenant, tenant_id="t0")
    assert shown == changed
    missing = ("TENANT_NOT_FOUND", 404)
    assert await api.refuse(owners.get_tenant, tenant_id="nobody") == missing
    assert await api.refuse(owners.update_tenant, tenant_id="nobody") == missing


@pytest.mark.parametrize("cursor", ["x", "bm8", "WzFd", "WyJhXHUwMDAwIl0", "W10", "[]", "é"])
async def test_a_cursor_that_no_list_gave_is_refused(api: Caller, cursor: str) -> None:
    refusal = await api.refuse(owners.list_tenants, cursor=cursor)
    assert refusal == ("CURSOR_INVALID", 400)


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00"])
async def test_a_time_at_the_calendars_ends_is_refused(api: Caller, time: str) -> None:
    for asked, fields in (
        (measured.TelemetryQuery, {**DEVICE, "from": time}),
        (measured.TelemetryQuery, {**DEVICE, "to": time}),
        (refused.ListQuarantine, {"since": time}),
        (deliveries.ListAttempts, {"since": time}),
        (subscriptions.CreateSubscription, {"tenant_id": "test", "expires_at": time}),
        (subscriptions.CreateSubscription, {"tenant_id": "test", "starts_at": time}),
        (delivery_options.Sample, {"payload": {}, "stored_at": time}),
    ):
        with pytest.raises(ValidationError, match="year must be between 2 and 9998"):
            asked.model_validate(fields)
    cursor = write_cursor(time, 1)
    refusal = await api.refuse(measured.query_telemetry, **DEVICE, cursor=cursor)
    assert refusal == ("CURSOR_INVALID", 400)


async def test_subscriptions_are_added_suspended_and_made_endless(api: Caller) -> None:
    added = await api.ask(
        subscriptions.create_subscription,
        tenant_id="test",
        type="ADDON",
        expires_at="2027-01-01T00:00:00Z",
    )
    identity = {"tenant_id": "test", "subscription_id": added.subscription_id}
    change = subscriptions.update_subscription
    suspended = await api.ask(change, **identity, status="SUSPENDED")
    assert (suspended.status, suspended.expires_at) == ("SUSPENDED", added.expires_at)
    assert (await api.ask(change, **identity, expires_at=None)).expires_at is None
    assert await api.refuse(change, tenant_id="other", subscription_id=added.subscription_id) == (
        "SUBSCRIPTION_NOT_FOUND",
        404,
    )
    create = subscriptions.create_subscription
    assert await api.refuse(create, tenant_id="nobody") == ("TENANT_NOT_FOUND", 404)


async def test_a_subscription_lasts_for_a_term_and_is_extended_by_one(api: Caller) -> None:
    create, change = subscriptions.create_subscription, subscriptions.update_subscription
    terms = {"starts_at": "2126-01-31T00:00:00Z", "term": "P1M"}
    added = await api.ask(create, tenant_id="test", type="TEMPORARY", **terms)
    assert added.expires_at == datetime(2126, 2, 28, tzinfo=UTC)
    identity = {"tenant_id": "test", "subscription_id": added.subscription_id}
    longer = await api.ask(change, **identity, extend_by="P1Y")
    assert longer.expires_at == datetime(2127, 2, 28, tzinfo=UTC)
    await api.ask(change, **identity, expires_at="2020-01-01T00:00:00Z")
    renewed = (await api.ask(change, **identity, extend_by="P1D")).expires_at
    assert renewed is not None
    assert timedelta(hours=23) < renewed - datetime.now(UTC) < timedelta(hours=25)
    await api.ask(change, **identity, expires_at=None)
    refusal = await api.refuse(change, **identity, extend_by="P1D")
    assert refusal == ("SUBSCRIPTION_ENDLESS", 409)
    late = {"starts_at": "9990-01-01T00:00:00Z", "term": "P9Y"}
    assert await api.refuse(create, tenant_id="test", **late) == ("TERM_TOO_LONG", 422)
    for both in ({"term": "P1Y", "expires_at": "2030-01-01T00:00:00Z"}, {"term": "P1H"}):
        with pytest.raises(ValidationError):
            subscriptions.CreateSubscription(tenant_id="test", **both)


async def test_creating_a_tenant_again_with_its_term_is_the_same_tenant(api: Caller) -> None:
    tenant = {"tenant_id": "yearly", "subscription": {"term": "P1Y"}}
    assert await api.ask(owners.create_tenant, **tenant) == await api.ask(
        owners.create_tenant, **tenant
    )
    other = {**tenant, "subscription": {"term": "P2Y"}}
    assert await api.refuse(owners.create_tenant, **other) == ("TENANT_EXISTS", 409)


@pytest.mark.parametrize(
    ("kind", "has_room"), [("MAIN", True), ("TRIAL", True), ("TEMPORARY", True), ("ADDON", False)]
)
async def test_every_subscription_but_an_addon_counts_for_devices_that_name_none(
    api: Caller, kind: str, *, has_room: bool
) -> None:
    await api.ask(
        owners.create_tenant, tenant_id="u", subscription={"type": kind, "device_limit": 1}
    )
    for number in range(2 if has_room else 1):
        device = {"tenant_id": "u", "device_id": f"d{number}", "site_id": "s1"}
        if number == 1:
            refusal = await api.refuse(devices.register_device, **device)
            assert refusal == ("DEVICE_LIMIT_REACHED", 409)
        else:
            await api.ask(devices.register_device, **device)
    (own,) = (await api.ask(subscriptions.list_subscriptions, tenant_id="u")).items
    assert own.active_device_count == (1 if has_room else 0)
    found = await find_device(api.pool, "u", "d0")
    assert found is not None
    assert bool(found.subscriptions) == has_room


async def test_a_device_is_registered_with_the_hash_of_the_token_it_was_given(api: Caller) -> None:
    device = await register(api)
    assert device.provision_token == LONG_TOKEN
    stored = await api.pool.fetchval("SELECT provision_token_hash FROM device_registry")
    assert stored == hashlib.sha256(LONG_TOKEN.encode()).digest()
    shown = await api.ask(devices.get_device, **DEVICE)
    assert LONG_TOKEN.encode() not in encode(shown)


async def test_a_token_is_made_when_none_is_given_and_rotating_makes_another(api: Caller) -> None:
    first = (await register(api, provision_token=None)).provision_token
    second = (await api.ask(devices.rotate_token, **DEVICE)).provision_token
    assert len(first) >= 32
    assert first != second
    stored = await api.pool.fetchval("SELECT provision_token_hash FROM device_registry")
    assert stored == hashlib.sha256(second.encode()).digest()


@pytest.mark.parametrize("token", ["x", "fifteen-letters"])
async def test_a_token_that_can_be_guessed_is_refused(api: Caller, token: str) -> None:
    refusal = ("TOKEN_TOO_SHORT", 422)
    new = {**DEVICE, "site_id": "s1", "provision_token": token}
    assert await api.refuse(devices.register_device, **new) == refusal
    await register(api)
    changed = {**DEVICE, "provision_token": token}
    assert await api.refuse(devices.rotate_token, **changed) == refusal


async def test_registering_again_is_the_same_device_or_a_conflict(api: Caller) -> None:
    first = await register(api)
    assert await register(api) == first
    another = {"provision_token": LONG_TOKEN + "2"}
    for difference in ({"site_id": "s2"}, another, {"provision_token": None}):
        wanted = {**DEVICE, "site_id": "s1", "provision_token": LONG_TOKEN, **difference}
        refusal = await api.refuse(devices.register_device, **wanted)
        assert refusal == ("DEVICE_EXISTS", 409)


async def test_a_full_subscription_takes_no_further_device(api: Caller) -> None:
    await api.pool.execute("UPDATE subscriptions SET device_limit = 1")
    await register(api)
    second = {"tenant_id": "test", "device_id": "dev2", "site_id": "s1"}
    full = ("DEVICE_LIMIT_REACHED", 409)
    register_second = devices.register_device
    assert await api.refuse(register_second, **second) == full
    await api.ask(devices.revoke_device, **DEVICE)
    await api.ask(register_second, **second)
    assert await api.refuse(devices.reactivate_device, **DEVICE) == full


async def test_a_subscription_that_is_not_in_force_gives_no_room_beside_one_that_is(
    api: Caller,
) -> None:
    await api.pool.execute("UPDATE subscriptions SET device_limit = 1")
    for status, starts_at, expires_at in (
        ("EXPIRED", "2020-01-01", None),
        ("ACTIVE", "2020-01-01", "2020-02-01"),
        ("ACTIVE", "2100-01-01", None),
    ):
        await api.pool.execute(
            "INSERT INTO subscriptions"
            " (tenant_id, type, status, device_limit, starts_at, expires_at)"
            " VALUES ('test', 'MAIN', $1, 100, $2::text::timestamptz, $3::text::timestamptz)",
            *(status, starts_at, expires_at),
        )
    await register(api)
    second = {"tenant_id": "test", "device_id": "dev2", "site_id": "s1"}
    assert await api.refuse(devices.register_device, **second) == ("DEVICE_LIMIT_REACHED", 409)
    await api.pool.execute("UPDATE subscriptions SET status = 'EXPIRED' WHERE device_limit = 1")
    await api.ask(devices.register_device, **second)


async def test_devices_are_revoked_reactivated_and_listed_by_status(api: Caller) -> None:
    for number in range(3):
        await register(api, device_id=f"d{number}")
    for _ in range(2):
        revoked = await api.ask(devices.revoke_device, tenant_id="test", device_id="d1")
        assert revoked.status == "REVOKED"
    listing = devices.list_devices
    active = await api.ask(listing, tenant_id="test", status="ACTIVE")
    assert [device.device_id for device in active.items] == ["d0", "d2"]
    first = await api.ask(listing, tenant_id="test", limit=2)
    rest = await api.ask(listing, tenant_id="test", limit=2, cursor=first.next_cursor)
    assert [device.device_id for device in (*first.items, *rest.items)] == ["d0", "d1", "d2"]
    back = await api.ask(devices.reactivate_device, tenant_id="test", device_id="d1")
    assert back.status == "ACTIVE"


async def test_unknown_tenants_subscriptions_and_devices_are_not_found(api: Caller) -> None:
    missing = ("DEVICE_NOT_FOUND", 404)
    for call in (devices.get_device, devices.revoke_device, devices.reactivate_device):
        assert await api.refuse(call, **DEVICE) == missing
    assert await api.refuse(devices.rotate_token, **DEVICE) == missing
    new = devices.register_device
    nobody = {"tenant_id": "nobody", "device_id": "d", "site_id": "s"}
    assert await api.refuse(new, **nobody) == ("TENANT_NOT_FOUND", 404)
    wrong = {**DEVICE, "site_id": "s", "subscription_id": "00000000-0000-0000-0000-000000000000"}
    assert await api.refuse(new, **wrong) == ("SUBSCRIPTION_NOT_FOUND", 404)


@pytest.mark.parametrize(
    "difference",
    [
        {"tenant_id": "te*st"},
        {"tenant_id": "a" * 65},
        {"device_id": "dev>1"},
        {"device_id": "dev\n"},
        {"device_id": "."},
        {"device_id": ".."},
        {"device_id": "d" * 129},
        {"site_id": ""},
        {"site_id": "s\x00"},
        {"provision_token": ""},
        {"provision_token": "secret-token" * 30},
        {"provision_token": "secret-token in words"},
        {"provision_token": "secret-tok\u00e9n-of-letters"},
        {"metadata": {"a": "\x00"}},
        {"metadata": {"a": float("nan")}},
        {"metadata": {"a": [{"b": 2**63}]}},
        {"metadata": {"a": -(2**63) - 1}},
        {"metadata": {"a": "x" * 9000}},
        {"sensor_limit": -1},
        {"unknown": 1},
    ],
)
def test_what_no_device_can_be_is_refused_without_repeating_it(difference: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as refusal:
        devices.RegisterDevice.model_validate({**DEVICE, "site_id": "s1", **difference})
    assert "secret-token" not in str(refusal.value)


def make_certificate(name: str) -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject)
    builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(DAY).not_valid_after(DAY + timedelta(days=30))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


async def test_a_certificate_must_carry_the_devices_name(api: Caller) -> None:
    await register(api)
    pem = make_certificate("test/dev1")
    new = certificates.register_certificate
    kept = await api.ask(new, **DEVICE, certificate_pem=pem)
    assert (kept.not_before, kept.not_after) == (DAY, DAY + timedelta(days=30))
    assert await api.refuse(new, **DEVICE, certificate_pem=pem) == ("CERTIFICATE_EXISTS", 409)
    other = make_certificate("test/dev2")
    refusal = await api.refuse(new, **DEVICE, certificate_pem=other)
    assert refusal == ("CERTIFICATE_NAME_MISMATCH", 400)
    unknown = {"tenant_id": "test", "device_id": "dev2", "certificate_pem": other}
    assert await api.refuse(new, **unknown) == ("DEVICE_NOT_FOUND", 404)
    name = b"test/dev1"
    damaged = ssl.PEM_cert_to_DER_cert(pem).replace(b"\x0c\x09" + name, b"\x03\x09" + name)
    for none in ("-----BEGIN nothing", ssl.DER_cert_to_PEM_cert(damaged)):
        refusal = await api.refuse(new, **DEVICE, certificate_pem=none)
        assert refusal == ("CERTIFICATE_INVALID", 400)
    revoke = certificates.revoke_certificate
    gone = await api.ask(revoke, **DEVICE, certificate_id=kept.certificate_id)
    assert gone.status == "REVOKED"
    page = await api.ask(certificates.list_certificates, **DEVICE)
    assert page.items == [gone]


async def test_a_routes_secret_is_made_and_shown_once(api: Caller) -> None:
    route = await add_route(api)
    assert route.secret is not None
    assert route.secret.startswith("whsec_")
    assert len(base64.b64decode(route.secret.removeprefix("whsec_"))) == 32
    stored = await secrets_in_clear(api)
    assert stored["secret"] == route.secret
    identity = {"tenant_id": "test", "route_id": route.route_id}
    shown = await api.ask(routes.get_route, **identity)
    listed = await api.ask(routes.list_routes, tenant_id="test")
    assert listed.items == [shown]
    assert route.secret not in encode(shown).decode()
    assert shown.destination_config["url"] == "https://example.org/in"


async def test_a_routes_secret_is_rotated_and_the_old_one_signs_for_a_while(api: Caller) -> None:
    route = await add_route(api)
    identity = {"tenant_id": "test", "route_id": route.route_id}
    await api.pool.execute("UPDATE message_routes SET endpoint = 'e'")
    rotated = await api.ask(routes.rotate_secret, **identity, overlap_s=3600)
    # Only a route with an endpoint is probed while it is disabled.
    assert await api.pool.fetchval("SELECT endpoint FROM message_routes") == "e"
    assert route.secret is not None
    assert rotated.secret not in {route.secret, None}
    stored = await secrets_in_clear(api)
    [previous] = stored["previous_secrets"]
    assert (stored["secret"], previous["secret"]) == (rotated.secret, route.secret)
    left = datetime.fromisoformat(previous["until"]) - datetime.now(UTC)
    assert timedelta(minutes=59) < left <= timedelta(hours=1)
    shown = await api.ask(routes.get_route, **identity)
    assert route.secret not in encode(shown).decode()
    assert shown.destination_config["previous_secrets"][0]["secret"] == "***"

    moved = {"url": "https://example.com/"}
    await api.ask(routes.update_route, **identity, destination_config=moved)
    stored = await secrets_in_clear(api)
    assert stored["previous_secrets"] == [previous]
    await api.ask(routes.rotate_secret, **identity, overlap_s=0)
    stored = await secrets_in_clear(api)
    assert stored["previous_secrets"] == []


async def test_a_route_has_at_most_ten_older_secrets(api: Caller) -> None:
    identity = {"tenant_id": "test", "route_id": (await add_route(api)).route_id}
    for _ in range(10):
        await api.ask(routes.rotate_secret, **identity)
    assert await api.refuse(routes.rotate_secret, **identity) == ("TOO_MANY_SECRETS", 409)
    gone = {"tenant_id": "other", "route_id": identity["route_id"]}
    assert await api.refuse(routes.rotate_secret, **gone) == ("ROUTE_NOT_FOUND", 404)


async def test_a_signing_key_is_kept_and_only_its_public_key_is_shown(api: Caller) -> None:
    config = {"url": "https://example.org/in", "ed25519": True}
    route = await add_route(api, destination_config=config)
    public = route.destination_config["public_key"]
    assert public.startswith("whpk_")
    assert route.destination_config["signing_key"] == "***"
    identity = {"tenant_id": "test", "route_id": route.route_id}
    moved = {"url": "https://example.com/"}
    changed = await api.ask(routes.update_route, **identity, destination_config=moved)
    assert changed.destination_config["public_key"] == public


async def test_a_route_is_changed_disabled_and_deleted(api: Caller) -> None:
    config = {"url": "https://example.org/in", "secret": SECRET, "headers": {"X-Key": "hush"}}
    route = await add_route(api, destination_config=config, payload_filter="payload.a > 1")
    assert route.secret == SECRET
    identity = {"tenant_id": "test", "route_id": route.route_id}
    change = routes.update_route
    assert not (await api.ask(change, **identity, is_enabled=False)).is_enabled
    assert (await api.ask(change, **identity, payload_filter=None)).payload_filter is None
    moved = await api.ask(change, **identity, destination_config={"url": "https://example.com/"})
    assert "hush" not in encode(moved).decode()
    stored = await secrets_in_clear(api)
    assert stored == {"url": "https://example.com/", "secret": SECRET}
    await api.ask(routes.delete_route, **identity)
    gone = ("ROUTE_NOT_FOUND", 404)
    for call in (routes.get_route, routes.delete_route):
        assert await api.refuse(call, **identity) == gone
    assert await api.refuse(change, **identity, is_enabled=True) == gone


async def test_two_routes_of_a_tenant_cannot_have_one_name(api: Caller) -> None:
    await add_route(api)
    other = await add_route(api, name="other")
    taken = ("ROUTE_EXISTS", 409)
    wanted = {
        "tenant_id": "test",
        "name": "hook",
        "topic_filter": "#",
        "destination_config": {"url": "https://example.org/"},
    }
    assert await api.refuse(routes.create_route, **wanted) == taken
    identity = {"tenant_id": "test", "route_id": other.route_id, "name": "hook"}
    assert await api.refuse(routes.update_route, **identity) == taken
    wanted["tenant_id"] = "nobody"
    refusal = await api.refuse(routes.create_route, **wanted)
    assert refusal == ("TENANT_NOT_FOUND", 404)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"url": "ftp://example.org"},
        {"url": "https://"},
        {"url": "https://user:hush@example.org/"},
        {"url": "https://example.org:port/"},
        {"url": "https://example.org:0/"},
        {"url": "https://exa!mple.org/"},
        {"url": "https://[::1/"},
        {"url": "https://exa mple.org/"},
        {"url": "https://example.org/", "secret": "hush"},
        {"url": "https://example.org/", "secret": "whsec_aHVzaA=="},
        {"url": "https://example.org/", "headers": {"Host": "hush"}},
        {"url": "https://example.org/", "headers": {"X": "hush\r\nY: 1"}},
        {"url": "https://example.org/", "headers": {"X Y": "hush"}},
        {"url": "https://example.org/", "retries": 3},
    ],
)
async def test_a_webhook_that_cannot_be_delivered_to_is_refused(
    api: Caller, config: dict[str, Any]
) -> None:
    wanted = {"tenant_id": "test", "name": "hook", "topic_filter": "#"}
    api.settings = ROUTE_SETTINGS
    request = routes.CreateRoute.model_validate({**wanted, "destination_config": config})
    refusal = await api.refuse(routes.create_route, **request.model_dump(exclude_unset=True))
    assert refusal == ("DESTINATION_INVALID", 422)


@pytest.mark.parametrize(
    "difference",
    [
        {"topic_filter": "a/#/b"},
        {"topic_filter": "a+/b"},
        {"topic_filter": ""},
        {"payload_filter": "payload >"},
        {"payload_filter": "unknown > 1"},
        {"destination_type": "Pigeon!"},
        {"name": ""},
    ],
)
def test_a_route_that_could_match_nothing_is_refused(difference: dict[str, Any]) -> None:
    wanted = {"tenant_id": "test", "name": "hook", "topic_filter": "#", "destination_config": {}}
    with pytest.raises(ValidationError):
        routes.CreateRoute.model_validate({**wanted, **difference})


async def add_rows(api: Caller, count: int, padding: str = "") -> None:
    await api.pool.executemany(
        "INSERT INTO telemetry (time, tenant_id, device_id, site_id, msg_type, seq, metrics)"
        " VALUES ($1, 'test', 'dev1', 's1', 'telemetry', $2, $3::text::jsonb)",
        [
            (
                DAY + timedelta(minutes=number // 2),
                number,
                json.dumps({"temp": number, "pad": padding}),
            )
            for number in range(count)
        ],
    )


async def read_all(api: Caller, **fields: Any) -> list[list[int]]:
    pages: list[list[int]] = []
    cursor = None
    while True:
        page = await api.ask(measured.query_telemetry, **DEVICE, **fields, cursor=cursor)
        pages.append([row.seq for row in page.items])
        cursor = page.next_cursor
        if cursor is None:
            return pages


async def test_telemetry_is_read_by_time_page_after_page(api: Caller) -> None:
    await register(api)
    await add_rows(api, 9)
    span = {"from": DAY, "to": DAY + timedelta(hours=1)}
    assert await read_all(api, **span, limit=4) == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]
    middle = {"from": DAY + timedelta(minutes=1), "to": DAY + timedelta(minutes=3)}
    assert await read_all(api, **middle) == [[2, 3, 4, 5]]
    latest = await api.ask(measured.get_latest_telemetry, **DEVICE)
    assert (latest.seq, latest.metrics["temp"]) == (8, 8)


async def test_a_page_of_large_rows_fits_into_one_message(api: Caller) -> None:
    await register(api)
    await add_rows(api, 200, padding="x" * 8000)
    span = {"from": DAY, "to": DAY + timedelta(days=1)}
    pages = await read_all(api, **span, limit=500)
    assert [seq for page in pages for seq in page] == list(range(200))
    assert all(len(page) <= 88 for page in pages)


async def test_telemetry_of_unknown_and_silent_devices_is_not_found(api: Caller) -> None:
    latest = measured.get_latest_telemetry
    query = measured.query_telemetry
    assert await api.refuse(latest, **DEVICE) == ("DEVICE_NOT_FOUND", 404)
    assert await api.refuse(query, **DEVICE) == ("DEVICE_NOT_FOUND", 404)
    await register(api)
    assert await api.refuse(latest, **DEVICE) == ("TELEMETRY_NOT_FOUND", 404)
    assert (await api.ask(query, **DEVICE)).items == []
    backwards = {"from": DAY, "to": DAY - timedelta(days=1)}
    assert await api.refuse(query, **DEVICE, **backwards) == ("RANGE_INVALID", 422)


async def refuse_messages(api: Caller) -> None:
    for sequence, reason in enumerate(["TOKEN_INVALID", "DEVICE_REVOKED", "TOKEN_INVALID"], 1):
        message = Message(
            "telemetry.test",
            b"\xff\x00" + bytes([sequence]),
            headers={"X": "\x00"},
            stream="TELEMETRY",
            sequence=sequence,
            stored_at_ns=STORED_AT_NS,
        )
        topic = Topic("test", f"dev{sequence}", "telemetry")
        for _ in range(2):
            await quarantine(api.pool, message, Refusal(reason, "no\x00", topic, "s\x00"))


async def test_refused_messages_are_listed_by_what_is_asked_for(api: Caller) -> None:
    await refuse_messages(api)
    listing = refused.list_quarantine

    async def found(**fields: Any) -> list[str]:
        return [item.device_id for item in (await api.ask(listing, **fields)).items]

    assert await found() == ["dev3", "dev2", "dev1"]
    assert await found(reason="TOKEN_INVALID") == ["dev3", "dev1"]
    assert await found(tenant_id="test", device_id="dev2") == ["dev2"]
    assert await found(tenant_id="other") == []
    assert await found(since=datetime.now(UTC) + timedelta(hours=1)) == []
    first = await api.ask(listing, limit=2)
    assert await found(limit=2, cursor=first.next_cursor) == ["dev1"]


async def test_a_refused_message_is_shown_with_its_bytes(api: Caller) -> None:
    await refuse_messages(api)
    page = await api.ask(refused.list_quarantine)
    show = refused.get_quarantined
    shown = await api.ask(show, quarantine_id=page.items[0].quarantine_id)
    assert base64.b64decode(shown.payload_base64) == b"\xff\x00\x03"
    assert (shown.payload_bytes, shown.topic) == (3, "tenant/test/device/dev3/telemetry")
    assert shown.is_whole
    assert await api.refuse(show, quarantine_id=2**62) == ("QUARANTINE_NOT_FOUND", 404)


async def test_a_refused_message_is_shown_as_far_as_an_answer_has_room(api: Caller) -> None:
    await refuse_messages(api)
    await api.pool.execute(
        "UPDATE quarantine_events SET payload = decode(repeat('ab', 1000000), 'hex'),"
        " headers = jsonb_build_object('a', repeat('b', 200000))"
    )
    page = await api.ask(refused.list_quarantine)
    quarantine_id = page.items[0].quarantine_id
    shown = await api.ask(refused.get_quarantined, quarantine_id=quarantine_id)
    assert base64.b64decode(shown.payload_base64) == b"\xab" * 500_000
    assert (shown.payload_bytes, shown.headers, shown.is_whole) == (1_000_000, {}, False)


async def test_delivery_attempts_are_listed_newest_first(api: Caller) -> None:
    await api.pool.execute(
        "INSERT INTO delivery_jobs"
        " (tenant_id, job_id, route_id, destination_type, status, attempts) VALUES"
        " ('test', 'j1', 'r1', 'webhook', 'delivered', 2),"
        " ('other', 'j2', 'r2', 'webhook', 'failing', 1)"
    )
    await api.pool.execute(
        "INSERT INTO delivery_attempts (tenant_id, job_id, attempt, route_id, destination_type,"
        " started_at, duration_ms, outcome, status_code) VALUES"
        " ('test', 'j1', 1, 'r1', 'webhook', $1, 5, 'failed', 500),"
        " ('test', 'j1', 2, 'r1', 'webhook', $1, 5, 'delivered', 204),"
        " ('other', 'j2', 1, 'r2', 'webhook', $1, 5, 'failed', NULL)",
        DAY,
    )
    listing = deliveries.list_attempts
    everything = await api.ask(listing)
    assert [(item.job_id, item.attempt) for item in everything.items] == [
        ("j1", 2),
        ("j1", 1),
        ("j2", 1),
    ]
    failed = await api.ask(listing, tenant_id="test", outcome="failed")
    assert [item.status_code for item in failed.items] == [500]
    first = await api.ask(listing, limit=1)
    second = await api.ask(listing, limit=1, cursor=first.next_cursor)
    assert second.items == everything.items[1:2]


async def test_a_configuration_has_room_for_certificates_and_a_bound(api: Caller) -> None:
    wanted = {"tenant_id": "test", "name": "hook", "topic_filter": "#"}
    config = {"url": "https://example.org/", "authorities": "x" * 60_000}
    request = routes.CreateRoute.model_validate({**wanted, "destination_config": config})
    api.settings = ROUTE_SETTINGS
    refusal = await api.refuse(routes.create_route, **request.model_dump(exclude_unset=True))
    assert refusal == ("DESTINATION_INVALID", 422)
    config["authorities"] = "x" * 66_000
    with pytest.raises(ValidationError, match="at most 65536 bytes"):
        routes.CreateRoute.model_validate({**wanted, "destination_config": config})


async def test_a_page_of_large_routes_ends_early_and_the_next_one_goes_on(api: Caller) -> None:
    config = {"url": "https://example.org/", "authorities": "x" * 60_000}
    await api.pool.executemany(
        "INSERT INTO message_routes"
        " (tenant_id, name, topic_filter, destination_type, destination_config)"
        " VALUES ('test', $1, '#', 'webhook', $2::text::jsonb)",
        [(f"r{number:02}", json.dumps(config)) for number in range(20)],
    )
    names: list[str] = []
    cursor = None
    while len(names) < 20:
        page = await api.ask(routes.list_routes, tenant_id="test", limit=500, cursor=cursor)
        assert len(encode(page)) < 1_000_000
        names += [route.name for route in page.items]
        cursor = page.next_cursor
    assert names == [f"r{number:02}" for number in range(20)]
    assert cursor is None
