"""The gateway discovers endpoints, forwards requests over NATS, and answers over HTTP."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from runtime.broker.connection import Broker
from runtime.broker.micro import Answer
from runtime.message import Message
from tests.support.gateway import ADMIN, ADMIN_KEY, JSON, Gateway, echo, run_endpoint, run_gateway


@pytest.fixture
async def gateway(broker: Broker) -> AsyncIterator[Gateway]:
    async with run_gateway(broker) as running:
        yield running


async def test_a_new_function_is_served_without_a_restart(gateway: Gateway, broker: Broker) -> None:
    await gateway.lines.wait("The gateway listens.")
    async with run_endpoint(broker, echo):
        answer = await gateway.client.post("/probe", json={"a": 1})
        assert (answer.status_code, answer.json()) == (200, {"a": 1})
        assert answer.headers["x-content-type-options"] == "nosniff"


async def test_a_function_younger_than_the_round_in_progress_is_found(broker: Broker) -> None:
    asked = asyncio.Event()
    subscription = await broker.subscribe("$SRV.INFO", lambda _message: asked.set())
    async with run_gateway(broker, discovery_wait_s=0.5, discovery_every_s=3600) as gateway:
        await asked.wait()
        async with run_endpoint(broker, echo):
            answer = await gateway.client.post("/probe", json={})
    await subscription.unsubscribe()

    assert answer.status_code == 200


async def test_a_function_that_is_gone_disappears_after_some_rounds(
    gateway: Gateway, broker: Broker
) -> None:
    async with run_endpoint(broker, echo):
        await gateway.lines.wait("A route is served.", path="/probe")
    absent = await gateway.client.post("/probe", json={})
    assert (absent.status_code, absent.headers["retry-after"]) == (503, "1")
    await gateway.lines.wait("A route is gone.", path="/probe")
    answer = await gateway.client.post("/probe", json={})
    assert (answer.status_code, answer.json()["code"]) == (404, "NOT_FOUND")


@pytest.mark.parametrize(
    ("said", "passed_on"),
    [("30", "30"), ("86401", "86400"), ("soon", "1"), ("-1", "1"), ("9" * 20, "1"), ("", "1")],
)
async def test_an_endpoint_says_when_to_ask_again(
    gateway: Gateway, broker: Broker, said: str, passed_on: str
) -> None:
    async def refuse(_message: Message) -> Answer:
        return Answer(b"", headers={"Retry-After": said}, error=(503, "TRY_AGAIN"))

    async with run_endpoint(broker, refuse):
        answer = await gateway.client.post("/probe", json={})

    assert (answer.status_code, answer.headers["retry-after"]) == (503, passed_on)


async def test_the_path_wins_over_the_query_and_the_query_over_the_body(
    gateway: Gateway, broker: Broker
) -> None:
    async with run_endpoint(broker, echo, http__path="/devices/{device_id}"):
        answer = await gateway.client.post(
            "/devices/from%20path%2F%C3%BC?limit=5&device_id=query",
            json={"device_id": "body", "limit": 9, "name": "x"},
        )
        assert answer.json() == {"device_id": "from path/ü", "limit": "5", "name": "x"}


async def test_a_body_that_nats_would_not_take_is_refused(broker: Broker) -> None:
    reconnects = broker.reconnects
    async with run_gateway(broker, max_body_bytes=9_000_000) as gateway, run_endpoint(broker, echo):
        await gateway.lines.wait("A route is served.", path="/probe")
        body = b'{"a":"' + b"x" * broker.max_payload_bytes + b'"}'
        answer = await gateway.client.post("/probe", content=body, headers=JSON)
        assert (answer.status_code, answer.json()["code"]) == (413, "MESSAGE_TOO_LARGE")
        assert (await gateway.client.post("/probe", json={"a": 1})).json() == {"a": 1}
    assert broker.reconnects == reconnects


async def test_get_asks_with_what_the_url_says(gateway: Gateway, broker: Broker) -> None:
    async with run_endpoint(broker, echo, http__method="GET", http__path="/d/{id}"):
        assert (await gateway.client.get("/d/7?a=&b=%26")).json() == {"id": "7", "a": "", "b": "&"}
        head = await gateway.client.head("/d/7")
        assert (head.status_code, head.content) == (200, b"")


@pytest.mark.parametrize("query", ["a=1&a=2", "a=%ff", "&".join(f"k{n}=1" for n in range(101))])
async def test_a_query_that_could_mean_two_things_is_refused(
    gateway: Gateway, broker: Broker, query: str
) -> None:
    async with run_endpoint(broker, echo, http__method="GET"):
        answer = await gateway.client.get(f"/probe?{query}")
        assert (answer.status_code, answer.json()["code"]) == (400, "MALFORMED_QUERY")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b'{"a": 1, "a": 2}', 400),
        (b'{"a": NaN}', 400),
        (b"\xff", 400),
        (b"[1]", 422),
        (b"null", 422),
        (b" " * 1_000_001, 413),
    ],
)
async def test_a_bad_body_never_reaches_the_endpoint(
    gateway: Gateway, broker: Broker, body: bytes, status: int
) -> None:
    asked: list[Message] = []

    async def count(message: Message) -> Answer:
        asked.append(message)
        return Answer()

    async with run_endpoint(broker, count):
        answer = await gateway.client.post("/probe", content=body, headers=JSON)
        assert answer.status_code == status
        assert asked == []


async def test_a_body_must_say_it_is_json(gateway: Gateway, broker: Broker) -> None:
    async with run_endpoint(broker, echo):
        assert (await gateway.client.post("/probe", content=b"{}")).status_code == 415
        assert (await gateway.client.post("/probe")).json() == {}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Basic YTpi"}, 401),
        ({"Authorization": "Bearer"}, 401),
        ({"Authorization": "Bearer wrong"}, 403),
        ({"Authorization": "Bearer the key of the admins"}, 403),
        ({"Authorization": "bearer the key of the admin"}, 200),
        (ADMIN, 200),
    ],
)
async def test_an_admin_route_takes_the_admin_key_alone(
    gateway: Gateway, broker: Broker, headers: dict[str, str], status: int
) -> None:
    async with run_endpoint(broker, echo, http__auth="admin"):
        answer = await gateway.client.post("/probe", json={}, headers=headers)
        assert answer.status_code == status
        assert ("www-authenticate" in answer.headers) == (status == 401)


@pytest.mark.parametrize("key", [None, ""])
async def test_without_an_admin_key_admin_routes_are_closed_to_all(
    broker: Broker, key: str | None
) -> None:
    async with (
        run_gateway(broker, admin_key=key) as gateway,
        run_endpoint(broker, echo, http__auth="admin"),
    ):
        for shown in ("Bearer x", "Bearer None", "Bearer **********"):
            answer = await gateway.client.post("/probe", json={}, headers={"Authorization": shown})
            assert answer.status_code == 403


async def test_the_wrong_method_is_told_the_right_ones(gateway: Gateway, broker: Broker) -> None:
    async with run_endpoint(broker, echo, http__method="GET"):
        answer = await gateway.client.delete("/probe")
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
        assert answer.json()["code"] == "METHOD_NOT_ALLOWED"
        options = await gateway.client.options("/probe")
        assert (options.status_code, options.headers["allow"]) == (204, "GET, HEAD, OPTIONS")


async def test_a_success_has_the_declared_status_and_type(gateway: Gateway, broker: Broker) -> None:
    schema = json.dumps({"type": "object"})
    async with run_endpoint(broker, echo, http__status="201", schema__response=schema):
        answer = await gateway.client.post("/probe", json={})
        assert (answer.status_code, answer.headers["content-type"]) == (201, "application/json")


async def test_an_empty_answer_is_no_content(gateway: Gateway, broker: Broker) -> None:
    async def nothing(message: Message) -> Answer:
        return Answer()

    async with run_endpoint(broker, nothing):
        answer = await gateway.client.post("/probe", json={})
        assert (answer.status_code, answer.content) == (204, b"")


async def test_bytes_come_back_as_bytes(gateway: Gateway, broker: Broker) -> None:
    async def picture(message: Message) -> Answer:
        return Answer(b"<script>\xff")

    async with run_endpoint(broker, picture):
        answer = await gateway.client.post("/probe", json={})
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.content == b"<script>\xff"


@pytest.mark.parametrize(
    ("said", "media_type"),
    [
        ("application/json", "application/json"),
        ("text/html", "application/octet-stream"),
        ("application/json; charset=x", "application/octet-stream"),
        ("", "application/octet-stream"),
    ],
)
async def test_a_reply_may_say_that_it_is_json_and_nothing_else(
    gateway: Gateway, broker: Broker, said: str, media_type: str
) -> None:
    async def answer_so(message: Message) -> Answer:
        return Answer(b"{}", headers={"Content-Type": said})

    async with run_endpoint(broker, answer_so):
        answer = await gateway.client.post("/probe", json={})
    assert answer.headers["content-type"] == media_type


@pytest.mark.parametrize("status", [400, 404, 409, 422, 429, 500, 503])
async def test_an_endpoints_error_becomes_problem_details(
    gateway: Gateway, broker: Broker, status: int
) -> None:
    async def fail(message: Message) -> Answer:
        return Answer.failure(status, "SOME_CODE", "Some sentence.", "event-7")

    async with run_endpoint(broker, fail):
        answer = await gateway.client.post("/probe", json={})
        problem = answer.json()
        assert answer.status_code == problem["status"] == status
        assert answer.headers["content-type"] == "application/problem+json"
        assert (problem["code"], problem["detail"]) == ("SOME_CODE", "Some sentence.")
        assert (problem["event_id"], problem["instance"]) == ("event-7", "/probe")
        assert ("retry-after" in answer.headers) == (status in {429, 503})


async def test_an_endpoint_that_does_not_answer_is_a_504(broker: Broker) -> None:
    release = asyncio.Event()

    async def hang(message: Message) -> Answer:
        await release.wait()
        return Answer()

    async with run_gateway(broker, request_timeout_s=0.2) as gateway, run_endpoint(broker, hang):
        answer = await gateway.client.post("/probe", json={})
        release.set()
        assert (answer.status_code, answer.json()["code"]) == (504, "ENDPOINT_TIMEOUT")


async def test_a_stuck_endpoint_does_not_block_the_others(broker: Broker) -> None:
    release = asyncio.Event()
    asked = asyncio.Event()

    async def hang(message: Message) -> Answer:
        asked.set()
        await release.wait()
        return Answer(b"1")

    async with (
        run_gateway(broker, max_concurrent=4) as gateway,
        run_endpoint(broker, hang, name="stuck"),
        run_endpoint(broker, echo, name="quick"),
    ):
        stuck = asyncio.create_task(gateway.client.post("/stuck", json={}))
        await asyncio.wait_for(asked.wait(), 60)
        refused = await gateway.client.post("/stuck", json={})
        assert (refused.status_code, refused.json()["code"]) == (503, "OVERLOADED")
        assert (await gateway.client.post("/quick", json={})).status_code == 200
        release.set()
        assert (await stuck).status_code == 200


async def test_request_id_and_trace_reach_the_endpoint(gateway: Gateway, broker: Broker) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

    async def headers(message: Message) -> Answer:
        return Answer(json.dumps(dict(message.headers)).encode())

    async with run_endpoint(broker, headers):
        answer = await gateway.client.post(
            "/probe", json={}, headers={"traceparent": trace, "X-Request-Id": "r-7", **ADMIN}
        )
        seen = answer.json()
        assert (seen["traceparent"], seen["X-Request-Id"]) == (trace, "r-7")
        assert "Authorization" not in seen


async def test_an_endpoint_cannot_take_the_gateways_own_paths(
    gateway: Gateway, broker: Broker
) -> None:
    async with run_endpoint(broker, echo, http__method="GET", http__path="/docs"):
        await gateway.lines.wait("An endpoint is not exposed.", endpoint="probe/probe")
        assert "text/html" in (await gateway.client.get("/docs")).headers["content-type"]


async def test_bad_metadata_is_warned_of_once_and_harms_no_other(
    gateway: Gateway, broker: Broker
) -> None:
    async with (
        run_endpoint(broker, echo, name="bad", http__method="BREW"),
        run_endpoint(broker, echo, name="good"),
    ):
        await gateway.lines.wait("An endpoint is not exposed.", endpoint="bad/bad")
        assert (await gateway.client.post("/good", json={})).status_code == 200
        assert (await gateway.client.post("/bad", json={})).status_code == 404
        async with run_endpoint(broker, echo, name="later"):
            await gateway.lines.wait("A route is served.", path="/later")
        await gateway.lines.wait("A route is gone.", path="/later")
    warnings = [e for e in gateway.lines.entries if e["event"] == "An endpoint is not exposed."]
    assert len(warnings) == 1


async def test_garbage_instead_of_an_answer_to_discovery_is_passed_over(
    gateway: Gateway, broker: Broker
) -> None:
    garbage = [b"", b"\xff", b"[]", b"7", b'{"endpoints": 7}', b'{"endpoints": [1, null, {}]}']
    garbage += [b'{"name": {}, "endpoints": [{"name": [], "metadata": {"http.path": 1}}]}']

    async def answer_garbage(message: Message) -> None:
        for data in garbage:
            await broker.respond(message, data)

    subscription = await broker.subscribe("$SRV.INFO", answer_garbage)
    async with run_endpoint(broker, echo):
        assert (await gateway.client.post("/probe", json={})).status_code == 200
    await subscription.unsubscribe()
    assert "A round of discovery failed." not in gateway.lines.text


async def test_of_two_functions_with_one_path_the_first_keeps_it(
    gateway: Gateway, broker: Broker
) -> None:
    async def other(message: Message) -> Answer:
        return Answer(b'"other"')

    async with run_endpoint(broker, echo, name="zebra", http__path="/wanted"):
        await gateway.lines.wait("A route is served.", path="/wanted")
        async with run_endpoint(broker, other, name="aardvark", http__path="/wanted"):
            await gateway.lines.wait("An endpoint is not exposed.", endpoint="aardvark")
            assert (await gateway.client.post("/wanted", json={"a": 1})).json() == {"a": 1}


async def test_many_requests_for_unknown_paths_ask_nats_once(
    gateway: Gateway, broker: Broker
) -> None:
    rounds: list[Message] = []
    subscription = await broker.subscribe("$SRV.INFO", rounds.append)
    async with run_gateway(broker, discovery_every_s=3600) as quiet:
        answers = await asyncio.gather(*(quiet.client.get(f"/x{n}") for n in range(50)))
        assert {answer.status_code for answer in answers} == {404}
    await subscription.unsubscribe()
    # One request of the quiet gateway, and a few of the fixture's, which asks five times a second.
    assert len(rounds) < 20


async def test_a_rogue_answer_opens_neither_the_admin_api_nor_a_path_in_use(
    gateway: Gateway, broker: Broker
) -> None:
    async def leak(message: Message) -> Answer:
        return Answer(b'"leaked"')

    management: dict[str, str] = {"http__method": "GET", "http__path": "/api/v1/tenants"}
    subject = "management.tenants.list"
    async with (
        run_endpoint(broker, echo, name="list", subject=subject, **management, http__auth="admin"),
        run_endpoint(broker, echo, name="mine", http__method="GET"),
        run_endpoint(
            broker, leak, name="rogue", subject=subject, key=None, **management, http__auth="none"
        ),
        run_endpoint(broker, leak, name="thief", key="guessed", http__method="GET"),
        run_endpoint(broker, leak, name="aaa", key=None, http__method="GET", http__path="/mine"),
    ):
        await gateway.lines.wait("An endpoint is not exposed.", endpoint="rogue/rogue")
        await gateway.lines.wait("An endpoint is not exposed.", endpoint="thief/thief")
        await gateway.lines.wait("An endpoint is not exposed.", endpoint="aaa/aaa")
        assert (await gateway.client.get("/api/v1/tenants")).status_code == 401
        assert (await gateway.client.get("/thief")).status_code == 404
        assert (await gateway.client.get("/mine")).json() == {}


async def test_a_foreign_service_is_served_on_the_subjects_that_the_settings_name(
    broker: Broker,
) -> None:
    async with (
        run_gateway(broker, unsigned_subjects="billing.>, other.one") as gateway,
        run_endpoint(broker, echo, name="invoice", subject="billing.invoice", key=None),
    ):
        assert (await gateway.client.post("/invoice", json={"a": 1})).json() == {"a": 1}


async def test_after_ten_wrong_keys_an_address_is_not_told_that_the_next_one_is_right(
    broker: Broker,
) -> None:
    async with (
        run_gateway(broker, trusted_proxies="127.0.0.0/8") as gateway,
        run_endpoint(broker, echo, http__auth="admin"),
    ):

        async def ask(key: str, source: str) -> int:
            headers = {"Authorization": f"Bearer {key}", "X-Forwarded-For": source}
            return (await gateway.client.post("/probe", json={}, headers=headers)).status_code

        assert await ask(ADMIN_KEY, "192.0.2.1") == 200
        guesses = [await ask(f"guess {n}", "192.0.2.1") for n in range(12)]
        assert guesses == [403] * 10 + [429] * 2
        assert [await ask(f"guess {n}", "198.51.100.7") for n in range(10)] == [403] * 10
        # The key has come from the first address before, and never from the second.
        assert await ask(ADMIN_KEY, "192.0.2.1") == 200
        assert await ask(ADMIN_KEY, "198.51.100.7") == 429
        await gateway.lines.wait(
            "Requests are refused, as they do not prove an identity.",
            identity="admin",
            last_source="192.0.2.1",
        )
        assert "guess" not in gateway.lines.text


async def test_a_token_is_passed_on_and_wrong_ones_are_limited(
    gateway: Gateway, broker: Broker
) -> None:
    shown: list[str] = []

    async def check(message: Message) -> Answer:
        shown.append(message.headers["Authorization"])
        if shown[-1] == "Bearer w0":
            return Answer.failure(401, "TOKEN_EXPIRED", "The token has ended.")
        if shown[-1] != "Bearer right":
            return Answer.failure(403, "WRONG_TOKEN", "This is not the route's token.")
        return Answer(b"{}")

    async with run_endpoint(broker, check, http__auth="bearer", http__method="GET"):
        none = await gateway.client.get("/probe")
        assert (none.status_code, none.headers["www-authenticate"]) == (401, "Bearer")
        for wrong in ("Bearer", "Basic right", "Bearer a b", f"Bearer {'x' * 513}"):
            refused = await gateway.client.get("/probe", headers={"Authorization": wrong})
            assert refused.status_code == 401
        assert shown == []
        right = {"Authorization": "bearer  right"}
        assert (await gateway.client.get("/probe", headers=right)).status_code == 200
        answers = [
            await gateway.client.get("/probe", headers={"Authorization": f"Bearer w{number}"})
            for number in range(12)
        ]
        assert [answer.status_code for answer in answers] == [401] + [403] * 9 + [429] * 2
        assert answers[0].headers["www-authenticate"] == "Bearer"
        assert answers[1].json()["code"] == "WRONG_TOKEN"
        # Whoever guesses does not lock out somebody behind the same address.
        assert (await gateway.client.get("/probe", headers=right)).status_code == 200
        assert shown[0] == "Bearer right"
        openapi = (await gateway.client.get("/openapi.json")).json()
        assert openapi["paths"]["/probe"]["get"]["security"] == [{"bearerToken": []}]
