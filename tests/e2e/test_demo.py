"""`make demo` beside `make run`: the whole demonstration, and its error messages."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.documentation import ROOT, free_port, serving
from tests.support.servers import remove


@pytest.fixture
def environment(server_directory: Path) -> Iterator[dict[str, str]]:
    """Free ports and a data directory for this test."""
    ports = (
        "GATEWAY_PORT",
        "RUNTIME_NATS_PORT",
        "RUNTIME_MONITOR_PORT",
        "RUNTIME_MQTT_PORT",
        "RUNTIME_ADMIN_PORT",
        "DEMO_RECEIVER_PORT",
    )
    data = server_directory / "data"
    yield {"RUNTIME_DATA_DIR": str(data), **{name: str(free_port()) for name in ports}}
    remove(data)


def demonstrate(environment: Mapping[str, str]) -> tuple[int, str]:
    """Exit code and output of the demonstration."""
    done = subprocess.run(
        [sys.executable, "-m", "demo"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "COLUMNS": "80", **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.stderr == ""
    return done.returncode, done.stdout


def test_three_messages_become_three_rows_and_three_verified_deliveries_each_time(
    environment: dict[str, str],
) -> None:
    allowed = {"WEBHOOK_ALLOWED_NETWORKS": f"127.0.0.1:{environment['DEMO_RECEIVER_PORT']}"}
    with serving(ROOT, "manifests", environment=environment | allowed):
        first = demonstrate(environment)
        second = demonstrate(environment)
    for code, told in (first, second):
        assert code == 0, told
        assert "3 rows, 3 verified deliveries." in told
        assert len(re.findall(r"(MQTT|HTTP|NATS) +verified +TELEMETRY-\d+-\S+", told)) == 3


def test_what_is_missing_is_said_in_one_sentence(environment: dict[str, str]) -> None:
    code, told = demonstrate(environment)
    assert code == 1
    assert "start `make run` first" in told
    with serving(ROOT, "manifests", environment=environment):
        code, told = demonstrate(environment | {"ADMIN_KEY": "wrong"})
        assert (code, "refuses the admin key" in told) == (1, True)
        code, told = demonstrate(environment | {"RUNTIME_MQTT_PORT": "1"})
        assert (code, "There is no MQTT server on port 1." in told) == (1, True)
        code, told = demonstrate(environment)
        assert (code, "WEBHOOK_ALLOWED_NETWORKS=127.0.0.1:" in told) == (1, True)
        assert "Traceback" not in told
