"""`make demo` beside `make run`: the whole way, and clear words where it is barred."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.documentation import ROOT, free_port, serving
from tests.support.servers import remove

LOOPBACK = {"WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8"}


@pytest.fixture
def place(server_directory: Path) -> Iterator[dict[str, str]]:
    """Ports and a data directory that are this test's alone."""
    ports = (
        "GATEWAY_PORT",
        "RUNTIME_NATS_PORT",
        "RUNTIME_MONITOR_PORT",
        "RUNTIME_MQTT_PORT",
        "RUNTIME_ADMIN_PORT",
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
        timeout=90,
        check=False,
    )
    assert done.stderr == ""
    return done.returncode, done.stdout


def test_three_messages_become_three_rows_and_three_verified_deliveries_each_time(
    place: dict[str, str],
) -> None:
    with serving(ROOT, "manifests", environment=place | LOOPBACK):
        first = demonstrate(place)
        second = demonstrate(place)
    for code, told in (first, second):
        assert code == 0, told
        assert "3 rows, 3 verified deliveries." in told
        assert len(re.findall(r"(MQTT|HTTP|NATS) +verified +TELEMETRY-\d+-\S+", told)) == 3


def test_what_is_missing_is_said_in_one_sentence(place: dict[str, str]) -> None:
    code, told = demonstrate(place)
    assert code == 1
    assert "start `make run` first" in told
    with serving(ROOT, "manifests", environment=place):
        code, told = demonstrate(place | {"ADMIN_KEY": "wrong"})
        assert (code, "refuses the admin key" in told) == (1, True)
        code, told = demonstrate(place | {"MQTT_ADMIN_PASSWORD": "wrong"})
        assert (code, "is the password that of the host?" in told) == (1, True)
        code, told = demonstrate(place)
        assert (code, "WEBHOOK_ALLOWED_NETWORKS=127.0.0.0/8" in told) == (1, True)
        assert "Traceback" not in told
