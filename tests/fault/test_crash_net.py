"""Functions crash, block or hang: the settlement of their messages, and other functions' work."""

import asyncio
import json
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from runtime.broker.connection import Broker
from tests.support.host import consumer, eventually, letters_of, wait_until_settled
from tests.support.servers import NatsServer
from tests.support.serving import Served, serving

pytestmark = pytest.mark.timeout(300)

MESSAGES = 30
POISON = 11
MODULE = """
import asyncio, ctypes, json, os, signal, time
from pathlib import Path
from typing import Any
from runtime import Batch, Context, Event

JOURNAL = Path(__file__).with_name("journal")

def note(ctx: Context, what: Any) -> None:
    entry = {"function": ctx.function, "pid": os.getpid(), "attempt": ctx.attempt, "what": what}
    with JOURNAL.open("a") as journal:
        journal.write(json.dumps(entry) + chr(10))

CRASHES = {
    "exit": lambda: os._exit(2),
    "segmentation fault": lambda: ctypes.string_at(0),
    "abort": lambda: os.abort(),
    # What the kernel does when memory runs out.
    "out of memory": lambda: os.kill(os.getpid(), signal.SIGKILL),
}

async def work(event: Event[dict[str, Any]], ctx: Context) -> None:
    if "crash" in event.data:
        CRASHES[event.data["crash"]]()
    await asyncio.sleep(event.data.get("sleep", 0))
    time.sleep(event.data.get("block", 0))
    note(ctx, event.data["number"])

async def work_batch(batch: Batch[dict[str, Any]], ctx: Context) -> None:
    for event in batch:
        await work(event, ctx)

async def answer(event: Event[dict[str, Any]], ctx: Context) -> dict[str, int]:
    return {"pid": os.getpid()}

async def tick(ctx: Context) -> None:
    note(ctx, "tick")

async def serve(ctx: Context) -> None:
    note(ctx, "serving")
    await ctx.stopping.wait()
"""


def worker_of(stream: str, ack_wait: str = "1s", **changes: Any) -> dict[str, Any]:
    """The manifest of a function `work` on a stream; JSON is YAML."""
    return {
        "handler": "crashing:work",
        "consumer": {"stream": stream, "ack_wait": ack_wait},
        "retry": {"attempts": 4, "delay": "100ms"},
        **changes,
    }


def write_project(
    folder: Path, functions: Mapping[str, Any], retention: Mapping[str, str] | None = None
) -> None:
    streams = {
        name: {"subjects": [name.lower()], "retention": (retention or {}).get(name, "limits")}
        for name in {
            spec["consumer"]["stream"] for spec in functions.values() if "consumer" in spec
        }
    }
    (folder / "crashing.py").write_text(MODULE)
    (folder / "app.yaml").write_text(json.dumps({"streams": streams, "functions": functions}))


def addresses(nats_server: NatsServer) -> dict[str, str]:
    """Addresses of the servers; no function in this module needs PostgreSQL."""
    return {"NATS_URL": nats_server.url, "DATABASE_URL": "unused"}


def journal(folder: Path, function: str) -> list[dict[str, Any]]:
    """The function's notes, from all processes."""
    path = folder / "journal"
    lines = path.read_text().splitlines() if path.exists() else []
    entries: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return [entry for entry in entries if entry["function"] == function]


async def publish(broker: Broker, stream: str, **fields: Any) -> None:
    await broker.publish(stream.lower(), json.dumps(fields).encode())


async def entries_of(
    folder: Path, function: str, enough: Callable[[list[dict[str, Any]]], bool]
) -> list[dict[str, Any]]:
    """The function's notes, as soon as there are enough."""

    async def look() -> list[dict[str, Any]] | None:
        found = journal(folder, function)
        return found if enough(found) else None

    return await eventually(look, f"enough of {function}", 60) or []


@pytest.mark.parametrize("way", [pytest.param("isolated", marks=pytest.mark.long), "workers"])
async def test_a_message_that_kills_its_process_each_time_ends_as_a_dead_letter_and_alone(
    way: str, nats_server: NatsServer, broker: Broker, tmp_path: Path
) -> None:
    queue, log, steady = f"{way}_QUEUE", f"{way}_LOG", f"{way}_STEADY"
    attempts = 3 if way == "isolated" else 4
    alone: dict[str, Any] = {"isolate": way == "isolated", "retry": {"attempts": attempts}}
    functions = {
        "events": worker_of(log, **alone),
        "batches": worker_of(queue, handler="crashing:work_batch", **alone),
        "steady": worker_of(steady, retry={"attempts": 20}),
    }
    functions = {f"{way}_{name}": spec for name, spec in functions.items()}
    fragile = [f"{way}_events", f"{way}_batches"]
    write_project(tmp_path, functions, {queue: "workqueue"})
    arguments = ("--workers", "2") if way == "workers" else ()
    async with serving(tmp_path, "app.yaml", *arguments, **addresses(nats_server)) as served:
        await served.wait_for_line("Ready", worker="1")
        published = 0
        # Where both functions share a process, they run one after the other: a crash of one is an
        # attempt of the other's messages too.
        for turn in [fragile] if way == "isolated" else [[name] for name in fragile]:
            for name in turn:
                await publish_with_poison(broker, functions[name]["consumer"]["stream"])
            published = await keep_publishing(broker, steady, published, turn)
        for name, spec in functions.items():
            await wait_until_settled(broker, spec["consumer"]["stream"], name)

    for name in fragile:
        [letter] = await letters_of(broker, name)
        assert (letter.code, letter.attempts) == ("MAX_DELIVERIES", attempts)
        assert json.loads(letter.message.data)["number"] == POISON
        done = {entry["what"] for entry in journal(tmp_path, name)}
        assert done == set(range(MESSAGES)) - {POISON}
    found = await broker.api(f"STREAM.INFO.{queue}")
    assert found["state"]["messages"] == 0
    undisturbed = journal(tmp_path, f"{way}_steady")
    assert {entry["what"] for entry in undisturbed} == set(range(published))
    if way == "isolated":
        assert Counter(entry["attempt"] for entry in undisturbed) == {1: published}
        assert len({entry["pid"] for entry in undisturbed}) == 1


async def publish_with_poison(broker: Broker, stream: str) -> None:
    for number in range(MESSAGES):
        # A wrongly configured command exits with 2; here an exit with 2 is a crash like any other.
        poison = {"crash": "exit"} if number == POISON else {}
        await publish(broker, stream, number=number, **poison)


async def keep_publishing(broker: Broker, stream: str, first: int, until: list[str]) -> int:
    """Publish until each of these functions has a dead letter; returns the next number."""
    number = first

    async def look() -> bool:
        nonlocal number
        await publish(broker, stream, number=number)
        number += 1
        return all([await letters_of(broker, name) for name in until])

    await eventually(look, f"dead letters of {until}", 90)
    return number


async def test_however_a_process_ends_its_message_is_a_dead_letter_and_other_functions_go_on(
    nats_server: NatsServer, broker: Broker, tmp_path: Path
) -> None:
    crashes = {
        "segfault": ("segmentation fault", "SIGSEGV"),
        "abort": ("abort", "SIGABRT"),
        "memory": ("out of memory", "SIGKILL"),
    }
    fragile = {
        f"crash_{name}": worker_of(f"CRASH_{name}", isolate=True, retry={"attempts": 2})
        for name in crashes
    }
    steady = {"unmoved": worker_of("UNMOVED", retry={"attempts": 2})}
    write_project(tmp_path, {**fragile, **steady})
    async with serving(tmp_path, **addresses(nats_server)) as served:
        await wait_until_ready(served)
        for name, (crash, _) in crashes.items():
            await publish(broker, f"CRASH_{name}", number=1, crash=crash)
            await publish(broker, f"CRASH_{name}", number=2)
        published = await keep_publishing(broker, "UNMOVED", 0, list(fragile))
        for name in crashes:
            await wait_until_settled(broker, f"CRASH_{name}", f"crash_{name}")
        await wait_until_settled(broker, "UNMOVED", "unmoved")
        for name, (_, ending) in crashes.items():
            sentence = "A worker ended, it is started again"
            await served.wait_for_line(sentence, worker=f"isolated-crash_{name}", ended_by=ending)

    for name in fragile:
        [letter] = await letters_of(broker, name)
        assert (letter.code, json.loads(letter.message.data)["number"]) == ("MAX_DELIVERIES", 1)
        assert [entry["what"] for entry in journal(tmp_path, name)] == [2]
    undisturbed = journal(tmp_path, "unmoved")
    assert {entry["what"] for entry in undisturbed} == set(range(published))
    assert {entry["attempt"] for entry in undisturbed} == {1}


async def test_a_function_that_blocks_its_loop_is_named_and_delays_nobody_when_isolated(
    nats_server: NatsServer, broker: Broker, tmp_path: Path
) -> None:
    functions = {
        "blocking": worker_of("BLOCKING", "10s", isolate=True),
        "lasting": worker_of("LASTING"),
        "answering": {"handler": "crashing:answer", "endpoint": {"subject": "blocked.answer"}},
    }
    write_project(tmp_path, functions)
    async with serving(tmp_path, **addresses(nats_server)) as served:
        await served.wait_for_line("Ready", worker="1")
        await served.wait_for_line("Ready", worker="isolated-blocking")
        await publish(broker, "LASTING", number=1, sleep=4)
        await publish(broker, "BLOCKING", number=2, block=3)
        delays_s: list[float] = []
        while not journal(tmp_path, "blocking"):
            began_s = time.monotonic()
            await broker.request("blocked.answer", b"{}", timeout_s=10)
            delays_s.append(time.monotonic() - began_s)
        warning = await served.wait_for_line(
            "A function blocks the event loop; await there, or make it a plain function",
            function="blocking",
        )
        [lasting] = await entries_of(tmp_path, "lasting", bool)
        found = await consumer(broker, "LASTING", "lasting")
        await wait_until_settled(broker, "BLOCKING", "blocking")

    assert 'time.sleep(event.data.get("block", 0))' in warning["stack"]
    assert max(delays_s) < 1
    # The call took four times the ack wait, and the message was delivered once.
    assert (lasting["attempt"], found["num_redelivered"]) == (1, 0)


async def test_a_function_that_hangs_its_process_is_ended_at_its_time_limit(
    nats_server: NatsServer, broker: Broker, tmp_path: Path
) -> None:
    hanging = worker_of("HANGING", "3s", isolate=True, timeout="1s", retry={"attempts": 2})
    write_project(tmp_path, {"hanging": hanging})
    async with serving(tmp_path, **addresses(nats_server)) as served:
        await served.wait_for_line("Ready", worker="isolated-hanging")
        await publish(broker, "HANGING", number=1, block=3600)
        await publish(broker, "HANGING", number=2)
        [letter] = await wait_for_letters_slowly(broker, "hanging")
        await wait_until_settled(broker, "HANGING", "hanging")
        await served.wait_for_line(
            "The event loop was blocked for too long, the process ends", function="hanging"
        )

    assert (letter.code, json.loads(letter.message.data)["number"]) == ("MAX_DELIVERIES", 1)
    assert [entry["what"] for entry in journal(tmp_path, "hanging")] == [2]


async def wait_for_letters_slowly(broker: Broker, function: str) -> list[Any]:
    """As `wait_for_letters`, with a longer limit for several restarts."""

    async def look() -> list[Any]:
        return await letters_of(broker, function)

    return await eventually(look, f"a dead letter of {function}", 60)


async def test_functions_of_every_binding_run_isolated_and_come_back(
    nats_server: NatsServer, broker: Broker, tmp_path: Path
) -> None:
    endpoint = {"subject": "isolated.answer", "service": "isolated"}
    functions: dict[str, Any] = {
        "isolated_answer": {"handler": "crashing:answer", "endpoint": endpoint},
        "isolated_tick": {"handler": "crashing:tick", "schedule": {"every": "1s"}},
        "isolated_service": {"handler": "crashing:serve", "service": True},
    }
    for spec in functions.values():
        spec["isolate"] = True
    functions["neighbour"] = {"handler": "crashing:answer", "endpoint": {"subject": "neighbour"}}
    write_project(tmp_path, functions)
    async with serving(tmp_path, **addresses(nats_server)) as served:
        addresses_of = await served.wait_for_line("Started")
        await wait_until_ready(served)
        first = json.loads((await broker.request("isolated.answer", b"{}")).data)["pid"]
        neighbour = json.loads((await broker.request("neighbour", b"{}")).data)["pid"]
        ticks = await entries_of(tmp_path, "isolated_tick", bool)
        services = await entries_of(tmp_path, "isolated_service", bool)
        pids = {first, neighbour, ticks[0]["pid"], services[0]["pid"]}
        for pid in pids - {neighbour}:
            psutil.Process(pid).send_signal(signal.SIGKILL)
        checks = (await ask(addresses_of["admin"], "/readyz", 200)).json()["checks"]
        await entries_of(tmp_path, "isolated_tick", lambda all_: all_[-1]["pid"] not in pids)
        await entries_of(tmp_path, "isolated_service", lambda all_: all_[-1]["pid"] not in pids)
        second = await eventually(lambda: answers(broker), "another answer")
        same = json.loads((await broker.request("neighbour", b"{}")).data)["pid"]
        metrics = (await ask(addresses_of["admin"], "/metrics", 200)).text

    assert len(pids) == 4
    assert second not in pids
    assert same == neighbour
    assert checks["worker-1"]["ok"]
    assert not checks["worker-isolated-isolated_answer"]["ok"]
    restarts = 'runtime_restarts_total{process="isolated-isolated_answer",worker="supervisor"} 1.0'
    assert restarts in metrics


async def wait_until_ready(served: Served) -> None:
    """Return when the supervisor's log, not a worker's, says that it is ready."""

    async def look() -> bool:
        entries = [json.loads(line) for line in served.lines if line.startswith("{")]
        return any(e["event"] == "Ready" and "worker" not in e for e in entries)

    await eventually(look, "a ready host", 60)


async def answers(broker: Broker) -> int | None:
    try:
        return int(json.loads((await broker.request("isolated.answer", b"{}")).data)["pid"])
    except Exception:  # noqa: BLE001 - nobody there yet
        return None


async def ask(address: str, target: str, code: int) -> httpx.Response:
    async with httpx.AsyncClient() as client:
        answer = await client.get(f"{address}{target}")
    assert answer.status_code == code, answer.text
    return answer


async def test_a_blocked_process_ends_when_its_supervisor_is_killed(
    nats_server: NatsServer, broker: Broker, tmp_path: Path
) -> None:
    write_project(tmp_path, {"stuck": worker_of("STUCK", isolate=True, timeout="1h")})
    environment = {**addresses(nats_server), "RUNTIME_GRACE_S": "0.5"}
    async with serving(tmp_path, **environment) as served:
        await served.wait_for_line("Ready", worker="isolated-stuck")
        workers = psutil.Process(served.process.pid).children()
        await publish(broker, "STUCK", number=1, block=3600)
        await served.wait_for_line(
            "A function blocks the event loop; await there, or make it a plain function"
        )
        served.send(signal.SIGKILL)
        await served.process.wait()
        gone, alive = await asyncio.to_thread(psutil.wait_procs, workers, timeout=30)

    assert (len(gone), alive) == (2, [])
