"""Runs the project in docs/testing.md with pytest, in memory and on a real server."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.broker.connection import Broker
from tests.support.documentation import ROOT, read_blocks, write_files
from tests.support.servers import NatsServer

PAGE = ROOT / "docs" / "testing.md"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    names = write_files(PAGE, tmp_path)
    assert {"shop/orders.py", "manifests/shop.yaml", "tests/test_shop.py"} <= set(names)
    return tmp_path


def _pytest(project: Path, *arguments: str) -> str:
    options = ["-q", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto", "-o", "pythonpath=."]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *arguments],
        cwd=project,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_pages_tests_pass_in_memory(project: Path) -> None:
    assert "9 passed" in _pytest(project, "tests")


def test_the_pages_test_passes_on_a_real_server(project: Path) -> None:
    assert "1 passed" in _pytest(project, "--real-nats", "tests/test_on_a_server.py")


async def test_recorded_orders_become_cases(
    project: Path, nats_server: NatsServer, broker: Broker
) -> None:
    config = {"name": "ORDERS", "subjects": ["orders.>"]}
    await broker.api("STREAM.CREATE.ORDERS", config)
    for number in (1, 2):
        await broker.publish("orders.new", b'{"number": %d, "total": 3}' % number)
    [block] = [each for each in read_blocks(PAGE) if "recorded(" in each.text]
    assert 'server="nats://127.0.0.1:4222"' in block.text
    text = block.text.replace("nats://127.0.0.1:4222", nats_server.url)
    (project / "tests" / "test_recorded.py").write_text(text, encoding="utf-8")
    await asyncio.to_thread(_pytest, project, "tests/test_recorded.py")
    await broker.api("STREAM.DELETE.ORDERS")
    assert "2 passed" in await asyncio.to_thread(_pytest, project, "tests/test_recorded.py")
