"""Webhook delivery to a real HTTP server with a real database: requests, log and errors."""

import asyncio
import base64
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
import structlog
from standardwebhooks import Webhook
from svix.webhooks import Webhook as SvixWebhook

from functions.domain.signing_keys import make_signing_key, read_signing_key
from functions.route_delivery.webhook import start, stop
from runtime import Context, Message, Reject, Retry
from runtime.call.threads import FunctionThreads
from runtime.cli.manifests import shipped_manifests
from runtime.dispatch import Dispatcher, Later
from runtime.loader import load
from runtime.manifest import read
from runtime.process.placeholders import placeholders
from runtime.settings import HostSettings
from tests.support.receiver import Answer, Receiver
from tests.support.webhook_function import SECRET, SETTINGS, WebhookFunction, started


@pytest.fixture
async def webhook(postgres_dsn: str) -> AsyncIterator[WebhookFunction]:
    async with started(postgres_dsn) as function:
        yield function


async def test_a_delivery_is_signed_logged_and_done(webhook: WebhookFunction) -> None:
    async with Receiver(Answer(204, body=b"")) as receiver:
        route_id = await webhook.add_route(receiver.url, headers={"Authorization": "Bearer b"})
        await webhook.deliver(route_id)
    [request] = receiver.requests
    assert (request.method, request.path) == ("POST", "/hook?a=b")
    assert request.headers["host"] == f"localhost:{receiver.port}"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["authorization"] == "Bearer b"
    assert request.headers["webhook-id"] == "T-1-1-r"
    body = Webhook(SECRET).verify(request.body, request.headers)
    assert body["type"] == "device.telemetry"
    assert body["data"]["payload"] == {"metrics": {"temp": 22}}
    [attempt] = await webhook.attempts()
    assert attempt.pop("duration_ms") >= 0
    assert datetime.now(UTC) - attempt.pop("started_at") < timedelta(minutes=1)
    assert attempt == {
        "tenant_id": "test",
        "job_id": "T-1-1-r",
        "attempt": 1,
        "route_id": route_id,
        "destination_type": "webhook",
        "outcome": "delivered",
        "status_code": 204,
        "error_code": None,
        "response_excerpt": "",
    }


async def test_receivers_with_the_new_the_old_or_the_public_key_verify_one_delivery(
    webhook: WebhookFunction,
) -> None:
    old, private = "whsec_" + "b2xk" * 8, make_signing_key()
    until = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    keys: dict[str, Any] = {
        "previous_secrets": [{"secret": old, "until": until}],
        "signing_key": private,
    }
    async with Receiver() as receiver:
        await webhook.deliver(await webhook.add_route(receiver.url, **keys))
    [request] = receiver.requests
    for secret in (SECRET, old):
        assert Webhook(secret).verify(request.body, request.headers)
        SvixWebhook(secret).verify(request.body, request.headers)
    *_, asymmetric = request.headers["webhook-signature"].split(" ")
    read_signing_key(private).public_key().verify(
        base64.b64decode(asymmetric.removeprefix("v1a,")),
        f"T-1-1-r.{request.headers['webhook-timestamp']}.".encode() + request.body,
    )


async def test_a_delivered_job_is_not_sent_again(webhook: WebhookFunction) -> None:
    async with Receiver() as receiver:
        route_id = await webhook.add_route(receiver.url)
        await webhook.deliver(route_id)
        await webhook.deliver(route_id)
    assert len(receiver.requests) == 1
    assert len(await webhook.attempts()) == 1


async def test_a_failed_job_is_sent_again_with_the_same_id_and_body(
    webhook: WebhookFunction,
) -> None:
    async with Receiver(Answer(500, body=b"oops"), Answer(200)) as receiver:
        route_id = await webhook.add_route(receiver.url)
        with pytest.raises(Retry, match="HTTP_500"):
            await webhook.deliver(route_id)
        assert await webhook.job_status() == "failing"
        await webhook.deliver(route_id)
    first, second = receiver.requests
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert first.body == second.body
    assert [
        (a["attempt"], a["outcome"], a["status_code"], a["error_code"], a["response_excerpt"])
        for a in await webhook.attempts()
    ] == [(1, "failed", 500, "HTTP_500", "oops"), (2, "delivered", 200, None, "ok")]
    assert await webhook.job_status() == "delivered"


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirection_is_a_failure_and_is_not_followed(
    webhook: WebhookFunction, status: int
) -> None:
    async with Receiver() as other, Receiver(Answer(status, {"Location": other.url})) as receiver:
        route_id = await webhook.add_route(receiver.url)
        with pytest.raises(Retry, match=f"HTTP_{status}"):
            await webhook.deliver(route_id)
    assert len(receiver.requests) == 1
    assert other.requests == []


async def test_410_disables_the_route_and_later_jobs_are_held_unsent(
    webhook: WebhookFunction,
) -> None:
    async with Receiver(Answer(410)) as receiver:
        route_id, kept = [await webhook.add_route(receiver.url) for _ in range(2)]
        with pytest.raises(Reject) as gone:
            await webhook.deliver(route_id)
        await webhook.deliver(route_id, job_id="T-2-1-r")
    assert gone.value.code == "ENDPOINT_GONE"
    assert len(receiver.requests) == 1
    enabled = await webhook.pool.fetch("SELECT id FROM message_routes WHERE is_enabled")
    assert [str(row["id"]) for row in enabled] == [kept]
    assert [(a["outcome"], a["error_code"]) for a in await webhook.attempts()] == [
        ("refused", "ENDPOINT_GONE")
    ]
    held = "SELECT job_id FROM delivery_jobs WHERE status = 'held'"
    assert await webhook.pool.fetchval(held) == "T-2-1-r"


async def test_retry_after_in_seconds_sets_the_delay(webhook: WebhookFunction) -> None:
    async with Receiver(Answer(429, {"Retry-After": "17"})) as receiver:
        with pytest.raises(Retry) as later:
            await webhook.deliver(await webhook.add_route(receiver.url))
    assert later.value.at_least_s == 17.0


async def test_retry_after_as_a_date_sets_the_delay(webhook: WebhookFunction) -> None:
    at = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    async with Receiver(Answer(503, {"Retry-After": at})) as receiver:
        with pytest.raises(Retry) as later:
            await webhook.deliver(await webhook.add_route(receiver.url))
    assert later.value.at_least_s is not None
    assert 90.0 < later.value.at_least_s <= 100.0


async def test_an_endpoint_that_hangs_is_a_timeout(webhook: WebhookFunction) -> None:
    webhook.scope.settings = SETTINGS.model_copy(update={"timeout_s": 0.2})
    await stop(Context(webhook.scope))
    webhook.scope.state = await start(Context(webhook.scope))
    async with Receiver(Answer(held=asyncio.Event())) as receiver:
        with pytest.raises(Retry, match="TIMEOUT"):
            await webhook.deliver(await webhook.add_route(receiver.url))
    assert [a["error_code"] for a in await webhook.attempts()] == ["TIMEOUT"]


async def test_an_endpoint_that_does_not_listen_is_tried_again(webhook: WebhookFunction) -> None:
    async with Receiver() as receiver:
        url = receiver.url
    with pytest.raises(Retry, match="CONNECTION_FAILED"):
        await webhook.deliver(await webhook.add_route(url))


async def test_a_name_without_an_address_is_tried_again(webhook: WebhookFunction) -> None:
    with pytest.raises(Retry, match="NAME_NOT_RESOLVED"):
        await webhook.deliver(await webhook.add_route("http://nowhere.invalid/"))


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "CONNECTION_LOST"),
        (b"220 mail.example ESMTP\r\n", "PROTOCOL_ERROR"),
        (b"HTTP/1.1 200\x00\r\n\r\n", "PROTOCOL_ERROR"),
    ],
)
async def test_an_answer_that_is_not_http_is_tried_again(
    webhook: WebhookFunction, raw: bytes, code: str
) -> None:
    async with Receiver(Answer(raw=raw)) as receiver:
        with pytest.raises(Retry, match=code):
            await webhook.deliver(await webhook.add_route(receiver.url))


async def test_a_long_answer_is_cut_and_made_storable(webhook: WebhookFunction) -> None:
    body = b"\x00\xff" + b"x" * 1_000_000
    async with Receiver(Answer(400, body=body)) as receiver:
        with pytest.raises(Retry):
            await webhook.deliver(await webhook.add_route(receiver.url))
    [attempt] = await webhook.attempts()
    assert attempt["response_excerpt"] == "\ufffd\ufffd" + "x" * 16_382


async def test_a_body_that_stalls_or_breaks_off_does_not_undo_a_success(
    webhook: WebhookFunction,
) -> None:
    cut = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nab"
    async with Receiver(Answer(body=b"abcdef", stalls_after=3), Answer(raw=cut)) as receiver:
        route_id = await webhook.add_route(receiver.url)
        await webhook.deliver(route_id, job_id="T-1-1-r")
        await webhook.deliver(route_id, job_id="T-2-1-r")
    assert [(a["outcome"], a["response_excerpt"]) for a in await webhook.attempts()] == [
        ("delivered", "abc"),
        ("delivered", "ab"),
    ]


async def test_a_connection_is_used_again(webhook: WebhookFunction) -> None:
    async with Receiver() as receiver:
        route_id = await webhook.add_route(receiver.url)
        for number in range(5):
            await webhook.deliver(route_id, job_id=f"T-{number}-1-r")
    assert (len(receiver.requests), receiver.connections) == (5, 1)


async def test_a_deleted_route_is_refused_with_a_row_that_says_so(webhook: WebhookFunction) -> None:
    for number, route_id in enumerate(["0b0e0f5c-9f6e-4f0c-8a53-2f5c3f3a7d11", "7"]):
        with pytest.raises(Reject) as gone:
            await webhook.deliver(route_id, job_id=f"T-{number}-1-r")
        assert gone.value.code == "ROUTE_GONE"
    assert [(a["outcome"], a["error_code"]) for a in await webhook.attempts()] == [
        ("refused", "ROUTE_GONE")
    ] * 2


async def test_another_tenants_route_does_not_exist_for_a_job(webhook: WebhookFunction) -> None:
    async with Receiver() as receiver:
        route_id = await webhook.add_route(receiver.url)
        with pytest.raises(Reject) as gone:
            await webhook.deliver(route_id, tenant_id="other", subject="routes.other.webhook")
    assert gone.value.code == "ROUTE_GONE"
    assert receiver.requests == []


async def test_a_job_that_names_another_tenant_than_its_subject_leaves_no_row(
    webhook: WebhookFunction,
) -> None:
    with pytest.raises(Reject) as mismatch:
        await webhook.deliver("7", tenant_id="other")
    assert mismatch.value.code == "TENANT_MISMATCH"
    assert await webhook.attempts() == []


async def test_a_route_of_another_type_is_refused(webhook: WebhookFunction) -> None:
    with pytest.raises(Reject) as changed:
        await webhook.deliver(await webhook.add_route("http://localhost/", kind="mqtt_republish"))
    assert changed.value.code == "ROUTE_TYPE_CHANGED"


@pytest.mark.parametrize(
    "config",
    [{"url": None}, {"url": "ftp://localhost/"}, {"secret": None}, {"secret": "whsec_"}],
)
async def test_a_route_that_cannot_be_used_is_refused(
    webhook: WebhookFunction, config: dict[str, Any]
) -> None:
    route_id = await webhook.add_route(**({"url": "http://localhost/"} | config))
    with pytest.raises(Reject) as invalid:
        await webhook.deliver(route_id)
    assert invalid.value.code == "ROUTE_CONFIG_INVALID"


async def test_a_payload_that_json_cannot_hold_is_refused(webhook: WebhookFunction) -> None:
    route_id = await webhook.add_route("http://localhost/")
    with pytest.raises(Reject) as refused:
        await webhook.deliver(route_id, payload=float("nan"))
    assert refused.value.code == "PAYLOAD_NOT_JSON"


async def test_an_endpoint_that_keeps_failing_is_paused_and_others_are_not(
    webhook: WebhookFunction,
) -> None:
    async with Receiver(Answer(500)) as failing, Receiver() as sound:
        broken, whole = await webhook.add_route(failing.url), await webhook.add_route(sound.url)
        for number in range(SETTINGS.breaker_calls):
            with pytest.raises(Retry, match="HTTP_500"):
                await webhook.deliver(broken, job_id=f"T-{number}-1-r")
        with pytest.raises(Retry, match="ENDPOINT_PAUSED") as paused:
            await webhook.deliver(broken, job_id="T-99-1-r")
        await webhook.deliver(whole, job_id="T-100-1-r")
    assert paused.value.delay_s is not None
    assert 0 < paused.value.delay_s <= 1.2 * SETTINGS.breaker_pause_s
    assert not paused.value.counts
    assert len(failing.requests) == SETTINGS.breaker_calls
    assert len(sound.requests) == 1
    # What was not tried is no attempt.
    assert "T-99-1-r" not in [attempt["job_id"] for attempt in await webhook.attempts()]


async def test_routes_to_one_url_share_a_breaker_and_another_path_of_the_host_does_not(
    webhook: WebhookFunction,
) -> None:
    async with Receiver(Answer(500)) as failing:
        routes = [await webhook.add_route(failing.url) for _ in range(2)]
        other = await webhook.add_route(failing.url.replace("/hook", "/other"))
        for number in range(SETTINGS.breaker_calls):
            with pytest.raises(Retry, match="HTTP_500"):
                await webhook.deliver(routes[number % 2], job_id=f"T-{number}-1-r")
        for route_id in routes:
            with pytest.raises(Retry, match="ENDPOINT_PAUSED"):
                await webhook.deliver(route_id, job_id="T-98-1-r")
        with pytest.raises(Retry, match="HTTP_500"):
            await webhook.deliver(other, job_id="T-99-1-r")


async def test_an_origin_that_cannot_be_connected_to_is_paused_for_all_its_paths(
    webhook: WebhookFunction,
) -> None:
    async with Receiver() as receiver:
        url = receiver.url
    for number in range(SETTINGS.breaker_calls):
        route_id = await webhook.add_route(f"{url}&path={number}")
        with pytest.raises(Retry, match="CONNECTION_FAILED"):
            await webhook.deliver(route_id, job_id=f"T-{number}-1-r")
    with pytest.raises(Retry, match="ENDPOINT_PAUSED"):
        await webhook.deliver(await webhook.add_route(url + "&last"), job_id="T-99-1-r")


async def test_410_does_not_disable_a_route_whose_url_was_corrected_meanwhile(
    webhook: WebhookFunction,
) -> None:
    answer = Answer(410, held=asyncio.Event())
    async with Receiver(answer) as receiver:
        route_id = await webhook.add_route(receiver.url)
        delivery = asyncio.create_task(webhook.deliver(route_id))
        await receiver.received(1)
        await webhook.pool.execute(
            "UPDATE message_routes SET destination_config = destination_config"
            ' || \'{"url": "https://example.org/corrected"}\''
        )
        assert answer.held is not None
        answer.held.set()
        with pytest.raises(Reject, match="410"):
            await delivery
    assert await webhook.pool.fetchval("SELECT is_enabled FROM message_routes")


async def test_jobs_at_the_same_time_are_logged_together_and_each_once(
    webhook: WebhookFunction,
) -> None:
    async with Receiver() as receiver:
        route_id = await webhook.add_route(receiver.url)
        jobs = [webhook.deliver(route_id, job_id=f"T-{number}-1-r") for number in range(60)]
        results = await asyncio.gather(*jobs, return_exceptions=True)
        sent = {request.headers["webhook-id"] for request in receiver.requests}
    postponed = [result for result in results if isinstance(result, Retry)]
    assert all(not retry.counts and "ENDPOINT_BUSY" in str(retry) for retry in postponed)
    logged = [attempt["job_id"] for attempt in await webhook.attempts()]
    assert len(logged) == len(sent) == 60 - len(postponed)
    assert set(logged) == sent


@pytest.mark.parametrize(
    ("attempt", "retry_after", "wait_s"),
    [
        (1, "1", 5.0),
        (1, "60", 60.0),
        (5, "300", 18_000.0),
        (2, "3600", 3600.0),
        (9, "99999", 86_400.0),
    ],
)
async def test_retry_after_cannot_hurry_a_job_through_its_attempts(
    webhook: WebhookFunction, attempt: int, retry_after: str, wait_s: float
) -> None:
    async with Receiver(Answer(503, headers={"retry-after": retry_after})) as receiver:
        route_id = await webhook.add_route(receiver.url)
        with pytest.raises(Retry, match="HTTP_503") as later:
            await webhook.deliver(route_id, attempt=attempt)
    manifest = read(shipped_manifests(["routes"]), placeholders(HostSettings()))
    function = load("deliver_webhook", manifest.functions["deliver_webhook"])
    threads = FunctionThreads("deliver_webhook", 1)
    # In the middle of the schedule's jitter.
    dispatcher = Dispatcher(function, webhook.scope, threads=threads, chance=lambda: 0.5)
    outcome = dispatcher.judge(Message("routes.t.webhook", b"", attempt=attempt), later.value)
    assert isinstance(outcome, Later)
    assert outcome.delay_s == wait_s


async def test_no_secret_is_in_what_is_logged_or_raised(webhook: WebhookFunction) -> None:
    async with Receiver(Answer(500, body=b"your header: Bearer s3cret")) as receiver:
        url = receiver.url.replace("/hook", "/T0KEN")
        route_id = await webhook.add_route(url, headers={"authorization": "Bearer s3cret"})
        with structlog.testing.capture_logs() as logged, pytest.raises(Retry) as later:
            await webhook.deliver(route_id)
    told = f"{logged} {later.value!r} {await webhook.attempts()}"
    for secret in (SECRET, SECRET.removeprefix("whsec_"), "T0KEN", "s3cret", "localhost"):
        assert secret not in told
