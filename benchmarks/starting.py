"""Measures the time from the start of the process to ready, on existing data."""

import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from benchmarks.servers import ROOT, STOP_LIMIT_S, clean_environment, free_port
from benchmarks.table import Start

BAR_S = 3.0
LIMIT_S = 60.0
_LOOK_EVERY_S = 0.01
_PORTS = (
    "RUNTIME_NATS_PORT",
    "RUNTIME_MONITOR_PORT",
    "RUNTIME_MQTT_PORT",
    "RUNTIME_ADMIN_PORT",
    "GATEWAY_PORT",
)


def measure(directory: Path, rounds: int) -> Start:
    """Serve the shipped manifests on the data of the other benchmarks.

    The first start is not counted, since it makes the streams that the other benchmarks lack.
    """
    seconds = [_start(directory) for _ in range(rounds + 1)][1:]
    return Start("start on existing data to ready", seconds, BAR_S)


def _start(directory: Path) -> float:
    ports = {name: str(free_port()) for name in _PORTS}
    began_s = time.monotonic()
    child = subprocess.Popen(
        [sys.executable, "-m", "runtime", "serve", "manifests/"],
        cwd=ROOT,
        env={
            **clean_environment(),
            **ports,
            "RUNTIME_DATA_DIR": str(directory / "data"),
            "RUNTIME_LOG_LEVEL": "ERROR",
        },
    )
    try:
        address = f"http://127.0.0.1:{ports['RUNTIME_ADMIN_PORT']}/readyz"
        while not _is_ready(address):
            if child.poll() is not None or time.monotonic() - began_s > LIMIT_S:
                raise RuntimeError(f"not ready after {time.monotonic() - began_s:.0f} s")
            time.sleep(_LOOK_EVERY_S)
        seconds = time.monotonic() - began_s
        print(f"  start: {seconds:.2f} s", flush=True)
        return seconds
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(STOP_LIMIT_S)


def _is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:  # noqa: S310 - loopback
            return bool(answer.status == 200)  # noqa: PLR2004 - HTTP's OK
    except (urllib.error.URLError, OSError):
        return False
