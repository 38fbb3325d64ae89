"""The command line's lists on terminals of two widths, with the longest possible names."""

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from runtime import Context, Event, Reject, Retry
from runtime.broker.connection import Broker
from runtime.cli.manifests import SHIPPED
from runtime.manifest import read
from runtime.process.placeholders import placeholders
from runtime.settings import HostSettings
from tests.support.command import ROOT, RUNTIME, runtime
from tests.support.host import fresh, running_host, wait_for_letters
from tests.support.servers import NatsServer
from tests.support.terminal import on_terminal, widest

WIDTHS = pytest.mark.parametrize("columns", [80, pytest.param(100, marks=pytest.mark.long)])


async def run_on(columns: int, *arguments: str, url: str = "", folder: Path = ROOT) -> list[str]:
    """The lines that a command prints on a terminal."""

    def run() -> list[str]:
        environment = {"NATS_URL": url, "ADMIN_KEY": "k" * 16, "MQTT_ADMIN_PASSWORD": "p"}
        with on_terminal(
            [RUNTIME, *arguments], columns=columns, folder=folder, environment=environment
        ) as shown:
            assert shown.wait_until_ended() == 0, shown.lines
            assert widest(shown.raw) <= columns
            return shown.lines

    return await asyncio.to_thread(run)


@WIDTHS
async def test_the_lists_fit_and_keep_what_matters_most(
    columns: int, nats_server: NatsServer, broker: Broker
) -> None:
    long = "forwards_readings_of_the_northern_plants_to_" + fresh("F")
    stream, service = fresh("LONG"), fresh("asks")
    consumers = {
        f"{long}_{end}": {
            "handler": "on_event",
            "consumer": {"stream": stream, "durable": f"{long}-{end}"},
            "retry": {"schedule": ["1h"]},
        }
        for end in ("n", "s")
    }
    endpoints = {
        f"{service}_{number}": {
            "handler": "on_request",
            "endpoint": {"subject": f"{service}.of.{number}", "service": service},
        }
        for number in range(12)
    }
    options: dict[str, Any] = {"streams": {stream: {"subjects": [f"{stream}.>"]}}}

    async def give_up(ctx: Context, event: Event[bytes]) -> None:
        raise Reject("A_CODE_OF_SOME_LENGTH", "no such destination is known; " * 5)

    async def wait(ctx: Context, event: Event[bytes]) -> None:
        raise Retry("the archive is closed until the morning, as it is every night")

    names = list(consumers)
    does = {names[0]: give_up, names[1]: wait}
    async with running_host(nats_server.url, consumers | endpoints, does, **options):
        await broker.publish(f"{stream}.{'plant.' * 15}x", b"x")
        await wait_for_letters(broker, names[0])
        url = nats_server.url
        listed = await run_on(columns, "ls", url=url)
        one_by_one = await run_on(columns, "ls", "--kind", "endpoint", url=url)
        chosen = await run_on(columns, "ls", "--function", f"{long}*", url=url)
        letters = await run_on(columns, "dlq", "ls", "--function", names[0], url=url)
        waiting = await run_on(columns, "parked", "ls", "--function", names[1], url=url)
        piped = await runtime(url, "ls", "--endpoints")
        folded = await runtime(url, "ls")
        described = await runtime(url, "ls", "--json", "--kind", "endpoint")

    [row] = [line.split() for line in listed if line.startswith(f"{service} ")]
    assert row[-1] == "running"
    headings = " ".join(" ".join(line.split()) for line in listed[:3])
    assert all(name in headings for name in ("MSG/S", "ERRORS", "P50", "P99", "PENDING", "STATE"))
    assert not any(line.startswith(f"{service}_") for line in listed)
    assert sum(line.startswith(f"{service}_") for line in one_by_one) == 12
    assert [line[0] for line in chosen if "…" in line] == ["f", "f"]
    # Two names that differ only at their ends remain distinguishable.
    assert {line.split()[0][-2:] for line in chosen if "…" in line} == {"_n", "_s"}
    [number] = [line.split() for line in letters if " A_CODE_OF_SOME" in line]
    assert "no such destination is" in " ".join(number)
    assert any("the archive is closed" in line for line in waiting)
    for lines in (listed, letters, waiting):
        assert any(line.startswith("Left out here: ") for line in lines)
    rows = {words[0]: words for words in piped.rows}
    assert f"{service}.of.3" in rows[f"{service}_3"]
    [words] = [words for words in folded.rows if words[0] == service]
    assert words[1:3] == ["12", "endpoints"]
    assert words[-1] == f"{service}.of.>"
    assert {one["service"] for one in described.documents if one["function"] in endpoints} == {
        service
    }


@WIDTHS
async def test_the_check_of_the_shipped_manifests_fits(columns: int) -> None:
    lines = await run_on(columns, "check", "manifests/")

    shipped = read(sorted(SHIPPED.glob("*.yaml")), placeholders(HostSettings()))
    streams, functions = len(shipped.streams), len(shipped.functions)
    assert lines[-1] == f"{streams} streams, {functions} functions: OK"
    [management] = [line.split() for line in lines if line.startswith("management ")]
    endpoints = [
        one
        for one in shipped.functions.values()
        if one.endpoint and one.endpoint.service == "management"
    ]
    assert management[1:3] == [str(len(endpoints)), "endpoints"]
    [telemetry] = [line for line in lines if line.startswith("TELEMETRY ")]
    assert "limits, 7d, 8GB" in telemetry
    assert sum(line.startswith(("get_", "list_", "create_")) for line in lines) == 0


@WIDTHS
async def test_problems_break_between_words(columns: int, tmp_path: Path) -> None:
    (tmp_path / "shop.yaml").write_text(
        "functions:\n  place_order: {handler: 'absent_module.inner:place', service: true}\n"
    )

    def check() -> list[str]:
        with on_terminal(
            [RUNTIME, "check", "shop.yaml"], columns=columns, folder=tmp_path, environment={}
        ) as shown:
            assert shown.wait_until_ended() == 2
            assert widest(shown.raw) <= columns
            return shown.lines

    lines = await asyncio.to_thread(check)

    assert re.sub(r"\s+", " ", " ".join(lines)) == (
        "shop.yaml:2: functions.place_order.handler: there is no module absent_module; install it,"
        " or start in the folder that holds it 1 problem"
    )
    assert lines[1].startswith("    ")
