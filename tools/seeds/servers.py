"""Starts what the commands are run against: a host, and a nats-server without configuration."""

import json
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.embedded.nats_config import find_nats_server
from runtime.embedded.nats_ports import read_ports
from tests.support.documentation import free_port, serving
from tools.seeds.places import ROOT, Places

DEVICES = (("test", "dev1"), ("test-tenant", "dev1"))
"""Tenants and devices that the documents' messages name."""
SITE = "s1"
TOKEN = "tok"  # noqa: S105 - the documents' own
_PORTS = ("NATS", "MONITOR", "MQTT", "ADMIN")
_START_S = 30.0
_PLAIN = """\
listen: "127.0.0.1:-1"
http: "127.0.0.1:-1"
ports_file_dir: "{folder}/ports"
log_file: "{folder}/nats-server.log"
jetstream {{ store_dir: "{folder}/jetstream", max_mem: 256MB, max_file: 2GB }}
mqtt {{ listen: "127.0.0.1:-1" }}
server_name: plain
"""


@contextmanager
def running_host(folder: Path) -> Iterator[Places]:
    """`runtime serve manifests/` with embedded servers, and the documents' devices."""
    ports = {name: free_port() for name in _PORTS}
    password = secrets.token_urlsafe(18)
    environment = {
        **{f"RUNTIME_{name}_PORT": str(port) for name, port in ports.items()},
        "GATEWAY_PORT": str(free_port()),
        "RUNTIME_DATA_DIR": str(folder / "data"),
        "MQTT_ADMIN_PASSWORD": password,
        "DEVICE_TOKEN_MIN_LENGTH": str(len(TOKEN)),
    }
    places = Places(
        folder, ports["NATS"], ports["MONITOR"], ports["MQTT"], ports["ADMIN"], environment
    )
    with serving(ROOT, "manifests/", environment=environment):
        _run(["runtime", "nats-context"], places)
        _register_devices(places)
        yield places


@contextmanager
def plain_server(folder: Path) -> Iterator[Places]:
    """A nats-server with JetStream and nothing else, as the documents have it."""
    (folder / "ports").mkdir(parents=True)
    config = folder / "nats.conf"
    config.write_text(_PLAIN.format(folder=folder), encoding="utf-8")
    process = subprocess.Popen([find_nats_server(), "-c", config])
    try:
        until = time.monotonic() + _START_S
        while (found := read_ports(folder, process.pid)) is None:
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"nats-server did not start: {folder / 'nats-server.log'}")
            time.sleep(0.02)
        yield Places(folder, found.nats, found.monitor, found.mqtt, 0, {})
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _register_devices(places: Places) -> None:
    for tenant, device in DEVICES:
        _request("management.tenants.create", {"tenant_id": tenant}, places)
        wanted = {"tenant_id": tenant, "device_id": device, "site_id": SITE}
        _request("management.devices.register", {**wanted, "provision_token": TOKEN}, places)


def _request(subject: str, payload: dict[str, str], places: Places) -> None:
    answer = _run(["nats", "--context", "runtime", "req", subject, json.dumps(payload)], places)
    if "Nats-Service-Error" in answer:
        raise RuntimeError(f"{subject}: {answer}")


def _run(command: list[str], places: Places) -> str:
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **places.variables()},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command[:4])}: {done.stderr}{done.stdout}")
    return done.stdout + done.stderr
