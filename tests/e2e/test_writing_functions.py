"""Serves the project in docs/writing-functions.md, and checks the page's statements."""

import asyncio
import json
import queue
import socket
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from runtime import Batch, Context, Event, RequestFailed
from runtime.broker.connection import Broker
from runtime.broker.dead_letters import DeadLetters, Selection
from tests.support.documentation import (
    ROOT,
    Inbox,
    Served,
    free_port,
    in_code,
    listening,
    read_blocks,
    read_table,
    serving,
    write_files,
)
from tests.support.host import eventually
from tests.support.servers import NatsServer, PostgresServer, remove, run_apart

PAGE = ROOT / "docs" / "writing-functions.md"


class CarrierServer:
    """The carrier's HTTP server: answers busy, then success, then a refusal."""

    def __init__(self) -> None:
        self.keys: queue.Queue[str] = queue.Queue()
        answers = iter((503, 200, 404))
        keys = self.keys

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                self.send_response(next(answers))
                self.send_header("Retry-After", "0")
                self.send_header("Content-Length", "0")
                self.end_headers()
                keys.put(self.headers["idempotency-key"])

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/parcels"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@dataclass(frozen=True, slots=True)
class Shop:
    """The page's project, served."""

    served: Served
    dsn: str
    till_port: int
    carrier: "CarrierServer"


@pytest.fixture(scope="module")
def database(postgres_server: PostgresServer) -> Iterator[str]:
    run_apart(lambda: postgres_server.make_database("shop"))
    yield postgres_server.dsn("shop")
    run_apart(lambda: postgres_server.administer("DROP DATABASE shop WITH (FORCE)"))


@pytest.fixture(scope="module")
def shop(nats_server: NatsServer, database: str) -> Iterator[Shop]:
    folder = Path(tempfile.mkdtemp(prefix="runtime-test-shop-"))
    write_files(PAGE, folder)
    till_port, carrier = free_port(), CarrierServer()
    environment = {
        "NATS_URL": nats_server.url,
        "DATABASE_URL": database,
        "SUPPLIER_KEY": "hidden-value",
        "TILL_PORT": str(till_port),
        "CARRIER_URL": carrier.url,
    }
    with serving(folder, "shop", environment=environment) as served:
        yield Shop(served, database, till_port, carrier)
    carrier.stop()
    remove(folder)


def as_json(**fields: object) -> bytes:
    return json.dumps(fields).encode()


async def ask(broker: Broker, subject: str, data: bytes) -> Any:
    return json.loads((await broker.request(subject, data)).data)


async def refused_request(broker: Broker, subject: str, data: bytes) -> RequestFailed:
    with pytest.raises(RequestFailed) as refused:
        await broker.request(subject, data)
    return refused.value


async def dead_letter(inbox: Inbox) -> tuple[str, str]:
    """Code and reason of the next dead letter."""
    headers = (await inbox.get()).headers
    return headers["Runtime-Code"], headers["Runtime-Reason"]


def test_every_block_is_part_of_the_project() -> None:
    assert all(block.name for block in read_blocks(PAGE))


async def test_an_event_becomes_a_message_of_its_own(shop: Shop, broker: Broker) -> None:
    async with listening(broker, "booked.17") as booked:
        await broker.publish("orders.placed", as_json(number=17, amount=9.5))
        message = await booked.get()

    assert json.loads(message.data) == {"number": 17, "amount": 9.5}
    line = await asyncio.to_thread(shop.served.wait_for, "Booked", number=17)
    assert (line["function"], line["stream"], line["sequence"]) == ("book", "ORDERS", 1)


async def test_the_annotation_decodes_and_bytes_stay_bytes(shop: Shop, broker: Broker) -> None:
    async with listening(broker, "noted.*") as noted:
        await broker.publish("readings.json", as_json(sensor="s1", celsius="21.5"))
        assert (await noted.get()).data == b"s1 21.5"
        await broker.publish("readings.raw", b"\x00\xff")
        assert (await noted.get()).data == b"\x00\xff"


async def test_what_does_not_fit_is_a_dead_letter_that_names_field_and_rule(
    shop: Shop, broker: Broker
) -> None:
    async with listening(broker, "dead_letters.note") as letters:
        await broker.publish("readings.json", as_json(sensor="s1", celsius="secret"))
        code, reason = await dead_letter(letters)

    assert code == "PAYLOAD_INVALID"
    assert reason.startswith("celsius: Input should be a valid number")
    assert "secret" not in reason


@pytest.mark.parametrize(("account", "attempt"), [("open", b"1"), ("busy", b"3")])
async def test_a_retry_comes_again_until_it_succeeds(
    shop: Shop, broker: Broker, account: str, attempt: bytes
) -> None:
    async with listening(broker, "charged.1") as charged:
        await broker.publish("payments.new", as_json(number=1, account=account))
        assert (await charged.get()).data == attempt


@pytest.mark.parametrize(
    ("account", "code", "attempts"),
    [("closed", "ACCOUNT_CLOSED", "1"), ("broken", "ATTEMPTS_EXHAUSTED", "3")],
)
async def test_what_cannot_succeed_is_a_dead_letter(
    shop: Shop, broker: Broker, account: str, code: str, attempts: str
) -> None:
    async with listening(broker, "dead_letters.charge") as letters:
        await broker.publish("payments.new", as_json(number=2, account=account))
        headers = (await letters.get()).headers

    assert (headers["Runtime-Code"], headers["Runtime-Attempt"]) == (code, attempts)
    assert ("a defect in the bank" in headers.get("Runtime-Traceback", "")) == (attempts == "3")


async def test_a_failed_attempt_is_a_line_in_the_log(shop: Shop, broker: Broker) -> None:
    await broker.publish("payments.new", as_json(number=3, account="broken"))
    line = await asyncio.to_thread(
        shop.served.wait_for, "An attempt failed", function="charge", attempt="1 of 3"
    )

    assert all(f'"{line[name]}"' in PAGE.read_text() for name in ("error", "where"))
    assert line["again_in_s"] == 0.1


async def test_a_batch_steers_each_message_and_isolates_its_poison(
    shop: Shop, broker: Broker
) -> None:
    visits = [
        as_json(shelf="tea", seconds=1),
        as_json(shelf="tea", seconds=-1),
        as_json(shelf="unknown", seconds=2),
        as_json(shelf="poison", seconds=3),
        b"no JSON",
        as_json(shelf="milk", seconds=4),
    ]
    async with (
        listening(broker, "tallied.*") as tallied,
        listening(broker, "dead_letters.tally") as letters,
    ):
        await asyncio.gather(*(broker.publish("visits", visit) for visit in visits))
        codes = sorted([(await dead_letter(letters))[0] for _ in range(3)])
        shelves: set[str] = set()
        while len(shelves) < 3:
            shelves.add((await tallied.get()).subject)

    assert codes == ["ATTEMPTS_EXHAUSTED", "NEGATIVE_DURATION", "PAYLOAD_INVALID"]
    assert shelves == {"tallied.tea", "tallied.milk", "tallied.unknown"}
    info = await broker.api("STREAM.INFO.TALLIED")
    assert info["state"]["messages"] == 3


async def test_an_endpoint_answers(shop: Shop, broker: Broker) -> None:
    answer = await ask(broker, "shop.stock.get", as_json(article="tea"))

    assert answer == {"article": "tea", "pieces": 12}


@pytest.mark.parametrize(
    ("subject", "data", "refusal"),
    [
        ("shop.stock.get", as_json(article="gold"), (404, "UNKNOWN_ARTICLE")),
        ("shop.stock.get", as_json(article=1), (422, "PAYLOAD_INVALID")),
        ("shop.stock.get", b"", (422, "PAYLOAD_INVALID")),
        ("shop.stock.count", b"", (500, "INTERNAL")),
    ],
)
async def test_an_endpoint_refuses_with_a_number_and_a_code(
    shop: Shop, broker: Broker, subject: str, data: bytes, refusal: tuple[int, str]
) -> None:
    refused = await refused_request(broker, subject, data)

    assert (refused.code, refused.description) == refusal
    body = json.loads(refused.body)
    assert body.keys() == {"code", "detail", "event_id"}
    assert "division" not in refused.body.decode()
    if refused.code == 500:
        line = await asyncio.to_thread(
            shop.served.wait_for, "Request failed", event_id=body["event_id"]
        )
        assert "ZeroDivisionError" in line["exception"]


async def test_a_schedule_ticks_at_start(shop: Shop) -> None:
    line = await asyncio.to_thread(shop.served.wait_for, "Swept")

    assert line["stream"] == "SCHEDULES"
    assert datetime.fromisoformat(line["due_at"]).tzinfo is not None


async def test_a_service_listens_and_knows_a_repetition(shop: Shop) -> None:
    async def pay() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", shop.till_port)
        writer.write(b"4711\n")
        answer = await reader.read()
        writer.close()
        return answer

    assert [await pay(), await pay()] == [b"new\n", b"known\n"]


async def test_a_service_that_cannot_run_ends_the_host_with_2(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    write_files(PAGE, tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        environment = {"NATS_URL": nats_server.url, "TILL_PORT": port, "DATABASE_URL": "unused"}
        manifest = "shop/till.yaml"
        with serving(tmp_path, manifest, environment=environment, ready=False) as served:
            code = await asyncio.to_thread(served.wait)

    assert code == 2
    served.wait_for(f"port {port}: another program uses it; set TILL_PORT")


async def test_settings_and_state_reach_the_function(shop: Shop, broker: Broker) -> None:
    assert await ask(broker, "shop.prices.convert", as_json(amount=3.333, currency="USD")) == 1.67


async def test_a_row_is_written_once_also_when_its_message_is_redriven(
    shop: Shop, broker: Broker
) -> None:
    connection = await asyncpg.connect(shop.dsn)
    try:
        async with listening(broker, "posted") as posted:
            ack = await broker.publish("entries", as_json(account="cash", cents=5))
            await posted.get()
            info = await broker.api("STREAM.MSG.GET.ENTRIES", {"seq": ack.sequence})
            [row] = await connection.fetch("SELECT * FROM ledger")
            assert (row["stream"], row["sequence"], row["cents"]) == ("ENTRIES", ack.sequence, 5)
            assert info["message"]["time"].startswith(row["stored_at"].strftime("%Y-%m-%dT%H:%M"))
            # The insert fails at every attempt; then an operator redrives the message.
            await connection.execute("ALTER TABLE ledger RENAME TO hidden")
            async with listening(broker, "dead_letters.post") as letters:
                await broker.publish("entries", as_json(account="bank", cents=7))
                code, _ = await dead_letter(letters)
            assert code == "ATTEMPTS_EXHAUSTED"
            await connection.execute("ALTER TABLE hidden RENAME TO ledger")

            async def redriven() -> int:
                return (await DeadLetters(broker).redrive(Selection(function="post"))).posted

            # A subscriber receives the dead letter a moment before its stream has stored it.
            assert await eventually(redriven, "a dead letter to redrive") == 1
            await posted.get()
        rows = await connection.fetch("SELECT account, sequence FROM ledger ORDER BY sequence")
        assert [tuple(row) for row in rows] == [("cash", 1), ("bank", 2)]
    finally:
        await connection.close()


async def test_http_is_asked_again_or_given_up_by_the_answer(shop: Shop, broker: Broker) -> None:
    await broker.publish("parcels", as_json(number=1))
    keys = [await asyncio.to_thread(shop.carrier.keys.get, timeout=30) for _ in range(2)]
    async with listening(broker, "dead_letters.send_parcel") as letters:
        await broker.publish("parcels", as_json(number=2))
        code, reason = await dead_letter(letters)

    assert keys == ["PARCELS-1", "PARCELS-1"]
    assert (code, reason) == ("CARRIER_REFUSED", "the carrier answered 404")


async def test_publishing_again_stores_nothing_new(shop: Shop, broker: Broker) -> None:
    async with listening(broker, "copies-live") as live:
        await broker.publish("originals", b"text")
        assert (await live.get()).data == b"again"

    info = await broker.api("STREAM.INFO.COPIES")
    assert info["state"]["messages"] == 2


async def test_a_function_asks_another(shop: Shop, broker: Broker) -> None:
    answer = await ask(broker, "shop.offers.make", as_json(article="milk"))
    refused = await refused_request(broker, "shop.offers.make", as_json(article="gold"))

    assert answer == {"stock": 0, "asked": 1}
    assert (refused.code, refused.description) == (404, "NOTHING_TO_OFFER")


async def test_a_long_call_is_not_redelivered_and_a_longer_one_is_ended(
    shop: Shop, broker: Broker
) -> None:
    async with listening(broker, "dead_letters.print_report") as letters:
        await broker.publish("reports", as_json(pages=40))
        await broker.publish("reports", as_json(pages=400))
        code, reason = await dead_letter(letters)

    assert (code, reason) == ("TIMEOUT", "the function ran longer than its limit of 2.5 s")
    assert shop.served.count("Printed", pages=40, left=True) == 1


async def test_a_plain_function_runs_in_a_thread(shop: Shop, broker: Broker) -> None:
    await broker.publish("images", b"image")
    line = await asyncio.to_thread(shop.served.wait_for, "Shrunk")

    assert line["thread"].startswith("shrink-")


def members(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


def test_every_member_of_the_context_is_explained() -> None:
    rows = read_table(PAGE, "Everything that `ctx` has")

    assert {name.rstrip("()") for row in rows for name in in_code(row[0])} == members(Context)


def test_every_member_of_an_event_and_of_a_batch_is_explained() -> None:
    rows = read_table(PAGE, "One message at a time")
    text = PAGE.read_text(encoding="utf-8")

    assert {name for row in rows for name in in_code(row[0])} == members(Event)
    own = members(Batch) - members(Sequence) - {"steered"}
    assert all(f"`batch.{name}(" in text for name in own)
