"""What the test kit ships for pytest: servers, fixtures, recorded messages."""

import subprocess
import sys
from pathlib import Path

import pytest

from runtime.broker.connection import Broker
from runtime.testing import TestHost, TestKitError, call, recorded
from tests.support import workload
from tests.support.host import fresh
from tests.support.probe import Probe
from tests.support.servers import NatsServer

_USES_FIXTURES = """
from runtime import Context, Event
from runtime.testing import TestHost

async def count(event: Event[bytes], ctx: Context) -> None:
    await ctx.postgres.execute("CREATE TABLE seen (n int)")

async def test_it(function_server, embedded_postgres):
    manifest = {
        "streams": {"S": {"subjects": ["s"]}},
        "functions": {
            "count": {
                "handler": f"{__name__}:count", "consumer": {"stream": "S"}, "uses": ["postgres"],
            },
        },
    }
    async with TestHost(manifest, database_url=embedded_postgres, server=function_server) as host:
        await host.publish("s", b"")
        await host.settled()
        host.assert_acked(count=1)
"""


def _pytest(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-o", "asyncio_mode=auto", *arguments, "."],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return done.stdout + done.stderr


def test_a_project_uses_the_fixtures_on_real_servers(tmp_path: Path) -> None:
    (tmp_path / "test_count.py").write_text(_USES_FIXTURES, encoding="utf-8")
    assert "1 passed" in _pytest(tmp_path, "--real-nats")


def test_a_project_that_uses_no_fixture_imports_nothing_of_the_runtime(tmp_path: Path) -> None:
    (tmp_path / "test_none.py").write_text(
        "import sys\ndef test_it():\n    assert 'runtime' not in sys.modules\n"
        "    assert 'pytest_function_runtime' in sys.modules\n",
        encoding="utf-8",
    )
    assert "1 passed" in _pytest(tmp_path)


async def test_recorded_messages_become_cases_and_are_kept_in_a_file(
    nats_server: NatsServer, broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe, kept = Probe(broker), tmp_path / "cases" / "orders.jsonl"
    await probe.make()
    await probe.put("a", "b", "c", headers={"Kind": "x"})
    monkeypatch.delenv("NATS_URL", raising=False)
    with pytest.raises(TestKitError, match="are not recorded yet: give a server, or set NATS_URL"):
        recorded(probe.stream, file=kept)
    cases = recorded(probe.stream, file=kept, server=nats_server.url, first=2)
    assert [str(each) for each in cases] == [f"{probe.stream}:2", f"{probe.stream}:3"]
    again = recorded(probe.stream, file=kept)
    assert [each.message.data for each in again] == [b"b", b"c"]
    assert again[0].message.headers == {"Kind": "x"}
    assert again[0].message.stored_at_ns == cases[0].message.stored_at_ns
    with pytest.raises(TestKitError, match="has no message on nothing"):
        recorded(probe.stream, server=nats_server.url, subject="nothing")
    kept.write_text("{}\n", encoding="utf-8")
    with pytest.raises(TestKitError, match=r"orders.jsonl:1 is not a recorded message"):
        recorded(probe.stream, file=kept)


async def test_a_case_runs_in_a_unit_test_and_on_a_host(
    nats_server: NatsServer, broker: Broker
) -> None:
    probe, name = Probe(broker), fresh("f")
    await probe.make()
    await probe.put("a", headers={"Kind": "x"})
    seen: list[object] = []

    async def act(ctx: object, event: object) -> None:
        seen.append(event.headers["Kind"])  # type: ignore[attr-defined]

    workload.behaviours[name] = workload.behaviours["on_event"] = act
    [case] = recorded(probe.stream, server=nats_server.url)
    (await call(workload.on_event, case)).assert_acked()
    manifest = {
        "streams": {"S": {"subjects": [f"{probe.root}.>"]}},
        "functions": {
            name: {"handler": "tests.support.workload:on_event", "consumer": {"stream": "S"}}
        },
    }
    async with TestHost(manifest) as host:
        await host.publish(case)
        await host.settled()
        host.assert_acked(subject=f"{probe.root}.a", count=1)
    assert seen == ["x", "x"]
