"""Serves each project in examples/, sends it what its text says, and looks at the effect.

For examples/homelab, `test_homelab_example.py` does this.
"""

import asyncio
import base64
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from PIL import Image
from standardwebhooks.webhooks import Webhook

from runtime.broker.connection import Broker
from tests.support.documentation import ROOT, Served, free_port, listening, serving
from tests.support.receiver import Answer, Receiver
from tests.support.servers import NatsServer, PostgresServer, run_apart

EXAMPLES = ROOT / "examples"
PROJECTS = sorted(path.parent.name for path in EXAMPLES.glob("*/manifest.yaml"))


@pytest.fixture
def database(postgres_server: PostgresServer) -> Iterator[str]:
    run_apart(lambda: postgres_server.make_database("example"))
    yield postgres_server.dsn("example")
    run_apart(lambda: postgres_server.administer("DROP DATABASE example WITH (FORCE)"))


@contextmanager
def served(
    name: str, nats_server: NatsServer, *arguments: str, **environment: str
) -> Iterator[Served]:
    """The example's host, on the test's servers."""
    environment["NATS_URL"] = nats_server.url
    with serving(EXAMPLES / name, ".", *arguments, environment=environment) as host:
        yield host


def as_json(**fields: object) -> bytes:
    return json.dumps(fields).encode()


def test_there_are_six_examples_and_the_index_lists_them() -> None:
    index = (EXAMPLES / "README.md").read_text("utf-8")

    assert len(PROJECTS) == 6
    for name in PROJECTS:
        assert f"({name}/README.md)" in index
        assert len((EXAMPLES / name / "README.md").read_text("utf-8").splitlines()) < 40


async def test_an_event_reaches_every_subscriber_signed_and_one_that_fails_gets_it_again(
    nats_server: NatsServer, broker: Broker
) -> None:
    key = "whsec_" + base64.b64encode(b"0123456789abcdef" * 2).decode()
    async with Receiver() as billing, Receiver(Answer(status=503), Answer()) as search:
        with served(
            "webhook_fanout",
            nats_server,
            BILLING_URL=billing.url,
            SEARCH_URL=search.url,
            SIGNING_KEY=key,
        ):
            await broker.publish("events.user", as_json(kind="user.created", text="Ada"))
            [told] = await billing.received(1)
            refused, again = await search.received(2)

    for request in (told, refused, again):
        headers = dict(request.headers)
        assert Webhook(key).verify(request.body, headers) == {
            "kind": "user.created",
            "text": "Ada",
        }
    assert refused.headers["webhook-id"] == again.headers["webhook-id"] == "EVENTS-1-search"


async def test_the_steps_of_an_order_are_taken_in_turn_and_one_out_of_turn_is_refused(
    nats_server: NatsServer, broker: Broker, database: str
) -> None:
    with served("order_pipeline", nats_server, DATABASE_URL=database):
        async with listening(broker, "news.*") as news:
            for step in ("placed", "paid", "shipped"):
                await broker.publish("orders.new", as_json(order="A1", step=step))
            told = [(await news.get()).subject for _ in range(3)]
        async with listening(broker, "dead_letters.take_order") as given_up:
            await broker.publish("orders.new", as_json(order="B2", step="shipped"))
            message = await given_up.get()

    assert told == ["news.placed", "news.paid", "news.shipped"]
    assert message.headers["Runtime-Code"] == "STEP_OUT_OF_TURN"


async def test_a_picture_becomes_a_small_one_and_other_bytes_a_dead_letter(
    nats_server: NatsServer, broker: Broker
) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (640, 320), "navy").save(picture, "PNG")
    with served("thumbnails", nats_server):
        async with listening(broker, "thumbnails.cat") as small:
            await broker.publish("pictures.cat", picture.getvalue())
            thumbnail = Image.open(io.BytesIO((await small.get()).data))
        async with listening(broker, "dead_letters.shrink") as given_up:
            await broker.publish("pictures.dog", b"no picture")
            message = await given_up.get()

    assert (thumbnail.format, thumbnail.size) == ("JPEG", (128, 64))
    assert message.headers["Runtime-Code"] == "NO_PICTURE"


async def test_a_quote_is_answered_by_nats_and_by_http_and_described_by_openapi(
    nats_server: NatsServer, broker: Broker
) -> None:
    port = free_port()
    with served(
        "rpc_service",
        nats_server,
        "--with",
        "gateway",
        ADMIN_KEY="the-key-of-the-admin",
        GATEWAY_PORT=str(port),
    ):
        reply = await broker.request("quotes.get", as_json(article="tea"))
        by_http = await asyncio.to_thread(
            fetch, f"http://127.0.0.1:{port}/api/v1/quotes/tea?pieces=3&currency=CHF"
        )
        document = await asyncio.to_thread(fetch, f"http://127.0.0.1:{port}/openapi.json")

    assert json.loads(reply.data)["total"] == 3.5
    assert by_http == {"article": "tea", "pieces": 3, "currency": "CHF", "total": 9.97}
    operation = document["paths"]["/api/v1/quotes/{article}"]["get"]
    assert operation["description"] == "What a number of pieces costs"


def fetch(url: str) -> Any:
    return httpx.get(url, timeout=10).raise_for_status().json()


async def test_visits_are_counted_and_reported_by_the_clock(
    nats_server: NatsServer, broker: Broker, database: str
) -> None:
    with served("scheduled_report", nats_server, DATABASE_URL=database, REPORT_EVERY="1s"):
        async with listening(broker, "reports.visits") as reports:
            for page in ("/start", "/start", "/help"):
                await broker.publish("visits", as_json(page=page))
            lines: list[dict[str, object]] = []
            while sum(int(str(line["visits"])) for line in lines) < 3:
                report = (await reports.get()).data.decode()
                lines = [json.loads(line) for line in report.splitlines()]

    assert {line["page"]: line["visits"] for line in lines} == {"/start": 2, "/help": 1}


@pytest.mark.parametrize("name", PROJECTS)
def test_the_examples_own_tests_pass(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "."],
        cwd=EXAMPLES / name,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
