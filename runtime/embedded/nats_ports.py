"""Reads the ports that a started nats-server chose itself."""

import json
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from runtime.embedded.nats_config import NatsPorts


def read_ports(directory: Path, server: int) -> NatsPorts | None:
    """The ports of process `server`; None until it is ready. Blocks for one request on loopback.

    The server writes the file when it listens; only its monitoring shows the MQTT port.
    """
    path = directory / "ports" / f"nats-server_{server}.ports"
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    monitor = urlsplit(written["monitoring"][0]).port or 0
    with urllib.request.urlopen(f"http://127.0.0.1:{monitor}/varz", timeout=5) as answer:
        mqtt = json.load(answer)["mqtt"]["port"]
    return NatsPorts(nats=urlsplit(written["nats"][0]).port or 0, monitor=monitor, mqtt=mqtt)
