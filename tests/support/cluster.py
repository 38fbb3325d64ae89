"""A JetStream cluster of three nats-servers, independent of any event loop."""

import contextlib
import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

from runtime.broker.connection import ApiError, Broker
from runtime.embedded.processes import launch_command
from runtime.errors import Unavailable
from tests.support.host import eventually
from tests.support.servers import nats_program

NODES = 3
_END_S = 30.0
_CONFIGURATION = """\
server_name: "{name}"
listen: "127.0.0.1:{port}"
log_file: "{directory}/{name}.log"
jetstream {{ store_dir: "{directory}/{name}" }}
cluster {{ name: "test", listen: "127.0.0.1:{route}", routes: [{routes}] }}
"""


class NatsNode:
    """One server of the cluster; a restart keeps its ports and its data."""

    def __init__(self, name: str, port: int, config: Path) -> None:
        self.name = name
        self.url = f"nats://127.0.0.1:{port}"
        self._config = config
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._child = subprocess.Popen(
            launch_command([nats_program(), "-c", self._config], death_signal=signal.SIGKILL),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def kill(self) -> None:
        """Send SIGKILL, and wait until the process has ended."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Shut down gracefully, which hands leaderships over; do nothing when it does not run."""
        self._end(signal.SIGTERM)

    def pause(self) -> None:
        """Send SIGSTOP and wait until it takes effect: connections stay open without answers."""
        assert self._child is not None, "the node is not running"
        os.kill(self._child.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self._child.pid, os.WSTOPPED)

    def resume(self) -> None:
        assert self._child is not None, "the node is not running"
        os.kill(self._child.pid, signal.SIGCONT)

    def _end(self, number: signal.Signals) -> None:
        child, self._child = self._child, None
        if child is not None:
            os.kill(child.pid, number)
            child.wait(_END_S)


class NatsCluster:
    """The three servers."""

    def __init__(self, directory: Path) -> None:
        ports = _free_ports(2 * NODES)
        clients, routes = ports[:NODES], ports[NODES:]
        addresses = ", ".join(f'"nats://127.0.0.1:{port}"' for port in routes)
        self.nodes = []
        for number, (client, route) in enumerate(zip(clients, routes, strict=True), start=1):
            name = f"n{number}"
            config = directory / f"{name}.conf"
            text = _CONFIGURATION.format(
                name=name, port=client, route=route, routes=addresses, directory=directory
            )
            config.write_text(text, encoding="utf-8")
            self.nodes.append(NatsNode(name, client, config))
        for node in self.nodes:
            node.start()

    @property
    def url(self) -> str:
        """The addresses of all servers, separated by commas, as in NATS_URL."""
        return ",".join(node.url for node in self.nodes)

    def node(self, name: str) -> NatsNode:
        return next(node for node in self.nodes if node.name == name)

    def stop(self) -> None:
        for node in self.nodes:
            node.kill()

    async def wait_until_whole(self) -> None:
        """Return when a stream with three replicas can be created."""

        async def whole() -> bool:
            with contextlib.suppress(Unavailable, ApiError):
                broker = await Broker.connect(self.url, name="cluster", timeout_s=2)
                try:
                    await broker.api("STREAM.CREATE.WHOLE", _WHOLE, timeout_s=2)
                    await broker.api("STREAM.DELETE.WHOLE", timeout_s=2)
                    return True
                finally:
                    await broker.close()
            return False

        await eventually(whole, "a whole cluster", 60)


_WHOLE: dict[str, Any] = {
    "name": "WHOLE",
    "subjects": ["whole"],
    "storage": "memory",
    "retention": "limits",
    "num_replicas": NODES,
}


def _free_ports(count: int) -> list[int]:
    """Free ports, chosen together so that no port comes twice."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
