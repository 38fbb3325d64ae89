import hashlib
from typing import Any

import pytest

from functions.domain.envelope import Envelope
from functions.domain.rate_limiter import RateLimiter
from functions.domain.registry import DeviceKey, RegisteredDevice, Subscription
from functions.domain.topics import Topic
from functions.ingest.checks import Accepted, Limits, Refused, check
from functions.ingest.device_rates import DeviceRates

NOW_NS = 1_700_000_000_000_000_000
HOUR_NS = 3600 * 1_000_000_000
TOKEN_HASH = hashlib.sha256(b"tok").digest()
GOOD: dict[str, Any] = {"site_id": "s1", "provision_token": "tok", "metrics": {"temp": 22}}


def device(**changes: Any) -> RegisteredDevice:
    return RegisteredDevice(**{"site_id": "s1", "token_hash": TOKEN_HASH, **changes})


def subscribed(*fields: Any, **more: Any) -> dict[str, Any]:
    return {"subscriptions": (Subscription(*fields, **more),)}


RENEWED = (
    Subscription("ACTIVE", NOW_NS + HOUR_NS),
    Subscription("ACTIVE", NOW_NS - HOUR_NS, NOW_NS + HOUR_NS),
    Subscription("SUSPENDED"),
)
ENDED_AND_NEXT = (
    Subscription("ACTIVE", NOW_NS + HOUR_NS),
    Subscription("ACTIVE", NOW_NS - HOUR_NS, NOW_NS),
)


def envelope(payload: dict[str, Any] | None = None, **changes: Any) -> Envelope:
    good = Envelope(Topic("t", "d", "telemetry"), "", payload or GOOD, 100, None, "t", "t")
    return good._replace(**changes)


def judge(
    given: Envelope,
    known: RegisteredDevice | None = None,
    rate: DeviceRates | None = None,
    **limits: Any,
) -> str:
    verdict = check(given, known or device(), NOW_NS, Limits(**limits), rate)
    return verdict.reason if isinstance(verdict, Refused) else "accepted"


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in GOOD.items() if name != key}


def empty_rate() -> DeviceRates:
    rate = DeviceRates(1, 1, 1, 1)
    assert rate.take(("t", "d"), NOW_NS, None, None)
    return rate


# The contract's checks in reverse: each message also fails every check above its line.
MISTAKES: list[tuple[str, dict[str, Any]]] = [
    ("METRIC_VALUE_INVALID", {"metrics": {"a": []}}),
    ("METRIC_KEY_INVALID", {"metrics": {"a b": []}}),
    ("METRIC_KEY_TOO_LONG", {"metrics": {"a" * 129: []}}),
    ("TOO_MANY_METRICS", {"metrics": {f"{n} " + "a" * 129: [] for n in range(51)}}),
    ("SITE_MISMATCH_REGISTRY_VS_PAYLOAD", {"registry": {"site_id": "s2"}}),
    ("MISSING_SITE_ID", {"site_id": None}),
    ("SUBSCRIPTION_EXPIRED", {"registry": subscribed(expires_ns=NOW_NS)}),
    ("SUBSCRIPTION_SUSPENDED", {"registry": subscribed("SUSPENDED")}),
    ("NO_SUBSCRIPTION_CAPACITY", {"registry": {"subscriptions": ()}}),
    ("NO_SUBSCRIPTION_CAPACITY", {"registry": subscribed(starts_ns=NOW_NS + 1)}),
    ("RATE_LIMITED", {"rate": True}),
    ("AUTH_FAILED", {"username": "t/other"}),
    ("TOKEN_INVALID", {"token": "wrong"}),
    ("TOKEN_MISSING", {"token": None}),
    ("TOKEN_NOT_SET_IN_REGISTRY", {"registry": {"token_hash": None}}),
    ("DEVICE_REVOKED", {"registry": {"status": "REVOKED"}}),
    ("UNREGISTERED_DEVICE", {"unknown": True}),
    ("TENANT_MISMATCH_TOPIC_VS_PAYLOAD", {"claimed_tenant": "u"}),
    ("PAYLOAD_TOO_LARGE", {"payload_bytes": 8193}),
]


@pytest.mark.parametrize("worst", range(len(MISTAKES)), ids=[name for name, _ in MISTAKES])
def test_the_first_failing_check_in_the_order_of_the_contract_names_the_reason(worst: int) -> None:
    wrong: dict[str, Any] = {"registry": {}}
    for _, mistake in MISTAKES[: worst + 1]:
        registry = {**wrong["registry"], **mistake.get("registry", {})}
        wrong = {**wrong, **mistake, "registry": registry}
    payload = {
        "site_id": wrong.get("site_id", "s1"),
        "provision_token": wrong.get("token", "tok"),
        "metrics": wrong["metrics"],
    }
    given = envelope(
        payload,
        username=wrong.get("username", ""),
        claimed_tenant=wrong.get("claimed_tenant", "t"),
        payload_bytes=wrong.get("payload_bytes", 100),
    )
    known = None if wrong.get("unknown") else device(**wrong["registry"])
    rate = empty_rate() if wrong.get("rate") else None
    verdict = check(given, known, NOW_NS, Limits(certificates="optional"), rate)
    assert isinstance(verdict, Refused)
    assert verdict.reason == MISTAKES[worst][0]
    assert "wrong" not in verdict.detail


@pytest.mark.parametrize(
    ("given", "known", "limits", "reason"),
    [
        (envelope(), device(), {}, "accepted"),
        (envelope(payload_bytes=8192), device(), {}, "accepted"),
        (envelope(claimed_tenant=None), device(), {}, "accepted"),
        (envelope(subject_tenant="u"), device(), {}, "TENANT_MISMATCH_TOPIC_VS_PAYLOAD"),
        (envelope({**GOOD, "tenant_id": "t"}), device(), {}, "accepted"),
        (envelope({**GOOD, "tenant_id": "u"}), device(), {}, "TENANT_MISMATCH_TOPIC_VS_PAYLOAD"),
        (envelope({**GOOD, "tenant_id": None}), device(), {}, "TENANT_MISMATCH_TOPIC_VS_PAYLOAD"),
        (envelope(without("site_id")), device(), {}, "MISSING_SITE_ID"),
        (envelope({**GOOD, "site_id": ""}), device(), {}, "MISSING_SITE_ID"),
        (envelope({**GOOD, "site_id": 5}), device(), {}, "MISSING_SITE_ID"),
        (envelope(GOOD), device(site_id="s2"), {}, "SITE_MISMATCH_REGISTRY_VS_PAYLOAD"),
        (envelope(), device(**subscribed("TRIAL")), {}, "accepted"),
        (envelope(), device(**subscribed("GRACE")), {}, "accepted"),
        (envelope(), device(**subscribed("EXPIRED")), {}, "SUBSCRIPTION_EXPIRED"),
        (envelope(), device(**subscribed(expires_ns=NOW_NS + 1)), {}, "accepted"),
        (envelope(), device(subscriptions=RENEWED), {}, "accepted"),
        (envelope(), device(subscriptions=ENDED_AND_NEXT), {}, "SUBSCRIPTION_EXPIRED"),
        (envelope(), device(tenant_status="SUSPENDED"), {}, "SUBSCRIPTION_SUSPENDED"),
        (envelope(), device(subscriptions=()), {"require_subscription": False}, "accepted"),
        (envelope({**GOOD, "provision_token": ""}), device(), {}, "TOKEN_MISSING"),
        (envelope({**GOOD, "provision_token": 7}), device(), {}, "TOKEN_MISSING"),
        (envelope({**GOOD, "provision_token": "toké"}), device(), {}, "TOKEN_INVALID"),
        (envelope(without("provision_token")), device(), {"require_token": False}, "accepted"),
        (envelope(without("metrics")), device(), {}, "accepted"),
        (envelope({**GOOD, "metrics": None}), device(), {}, "accepted"),
        (envelope({**GOOD, "metrics": {}}), device(), {}, "accepted"),
        (envelope({**GOOD, "metrics": []}), device(), {}, "METRICS_INVALID"),
        (envelope({**GOOD, "metrics": "x"}), device(), {}, "METRICS_INVALID"),
        (envelope({**GOOD, "metrics": {"a": 1.5, "b": True, "c": None}}), device(), {}, "accepted"),
        (envelope({**GOOD, "metrics": {"a": "open"}}), device(), {}, "accepted"),
        (envelope({**GOOD, "metrics": {"a": "\x00"}}), device(), {}, "METRIC_VALUE_INVALID"),
        (envelope({**GOOD, "metrics": {"a": "x" * 1025}}), device(), {}, "METRIC_VALUE_INVALID"),
        (envelope({**GOOD, "metrics": {"a": {"b": 1}}}), device(), {}, "METRIC_VALUE_INVALID"),
        (envelope({**GOOD, "metrics": {"": 1}}), device(), {}, "METRIC_KEY_INVALID"),
        (envelope({**GOOD, "metrics": {"a\x00": 1}}), device(), {}, "METRIC_KEY_INVALID"),
        (envelope({**GOOD, "metrics": {"temp.in:1/%-_": 1}}), device(), {}, "accepted"),
        (envelope({**GOOD, "metrics": {"a" * 128: 1}}), device(), {}, "accepted"),
        (envelope({**GOOD, "metrics": {f"m{n}": n for n in range(50)}}), device(), {}, "accepted"),
    ],
)  # fmt: skip
def test_each_check_at_its_bounds(
    given: Envelope, known: RegisteredDevice, limits: dict[str, Any], reason: str
) -> None:
    assert judge(given, known, **limits) == reason


@pytest.mark.parametrize(
    ("policy", "username", "certificates", "token", "reason"),
    [
        ("off", "u/x", (), "tok", "accepted"),
        ("off", "t/d", ((0, NOW_NS * 2),), None, "TOKEN_MISSING"),
        ("optional", "", (), "tok", "accepted"),
        ("optional", "service", (), "tok", "accepted"),
        ("optional", "service", ((0, NOW_NS * 2),), None, "TOKEN_MISSING"),
        ("optional", "t/d", ((0, NOW_NS * 2),), None, "accepted"),
        ("optional", "t/d", ((0, NOW_NS * 2),), "wrong", "TOKEN_INVALID"),
        ("optional", "t/d", (), None, "AUTH_FAILED"),
        ("optional", "t/d", ((0, NOW_NS),), None, "AUTH_FAILED"),
        ("optional", "t/d", ((NOW_NS + 1, NOW_NS * 2),), None, "AUTH_FAILED"),
        ("optional", "t/d2", ((0, NOW_NS * 2),), "tok", "AUTH_FAILED"),
        ("required", "", ((0, NOW_NS * 2),), "tok", "AUTH_FAILED"),
        ("required", "service", ((0, NOW_NS * 2),), "tok", "AUTH_FAILED"),
        ("required", "t/d", ((0, NOW_NS * 2),), None, "accepted"),
    ],
)
def test_a_certificate_stands_for_its_own_device_alone(
    policy: str,
    username: str,
    certificates: tuple[tuple[int, int], ...],
    token: str | None,
    reason: str,
) -> None:
    payload = without("provision_token") if token is None else {**GOOD, "provision_token": token}
    given = envelope(payload, username=username)
    assert judge(given, device(certificates=certificates), certificates=policy) == reason


def test_an_accepted_message_gives_site_and_metrics() -> None:
    verdict = check(envelope(), device(), NOW_NS, Limits(), None)
    assert verdict == Accepted("s1", {"temp": 22})


@pytest.mark.parametrize(
    "unproven",
    [
        envelope({**GOOD, "provision_token": "guessed"}),
        envelope(without("provision_token")),
        envelope(claimed_tenant="u"),
        envelope(username="t/other"),
        envelope(payload_bytes=8193),
    ],
)
def test_whoever_does_not_prove_to_be_the_device_does_not_use_up_its_rate(
    unproven: Envelope,
) -> None:
    rate = DeviceRates(1, 1, 1, 1)
    for _ in range(250):
        assert judge(unproven, rate=rate, certificates="optional") != "RATE_LIMITED"
    assert judge(envelope(), rate=rate) == "accepted"
    assert judge(envelope(), rate=rate) == "RATE_LIMITED"


def test_a_device_may_send_a_burst_and_then_at_its_rate() -> None:
    rate: RateLimiter[DeviceKey] = RateLimiter(5, 20)
    key = ("t", "d")
    assert [rate.take(key, NOW_NS) for _ in range(21)] == [True] * 20 + [False]
    assert rate.take(("t", "other"), NOW_NS)
    assert not rate.take(key, NOW_NS + 199_000_000)
    assert rate.take(key, NOW_NS + 200_000_000)
    assert not rate.take(key, NOW_NS + 200_000_000)
    assert [rate.take(key, NOW_NS + HOUR_NS) for _ in range(21)] == [True] * 20 + [False]


def test_a_clock_put_back_silences_no_device() -> None:
    rate: RateLimiter[DeviceKey] = RateLimiter(5, 20)
    assert all(rate.take(("t", "d"), NOW_NS) for _ in range(20))
    earlier_ns = NOW_NS - HOUR_NS
    assert [rate.take(("t", "d"), earlier_ns) for _ in range(21)] == [True] * 20 + [False]


def test_the_memory_of_rates_is_bounded() -> None:
    rate: RateLimiter[DeviceKey] = RateLimiter(1, 1, max_keys=10)
    for number in range(1000):
        assert rate.take(("t", str(number)), NOW_NS)
    assert len(rate._arrivals) <= 10
