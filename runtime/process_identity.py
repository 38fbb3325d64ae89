"""Names the process that answers discovery requests and sends log lines."""

import os
import socket
from dataclasses import dataclass, field

LONGEST_HOST_NAME = 64


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """The machine, the process and the worker.

    Attributes:
        host: the machine's name; in a container, the container's or the pod's.
        pid: the process's number on that machine.
        worker: the name of the worker process; empty in a host without worker processes.
    """

    host: str = field(default_factory=lambda: socket.gethostname()[:LONGEST_HOST_NAME])
    pid: int = field(default_factory=os.getpid)
    worker: str = ""

    def as_metadata(self) -> dict[str, str]:
        """The fields as strings; `worker` only if there is one."""
        found = {"host": self.host, "pid": str(self.pid)}
        return {**found, "worker": self.worker} if self.worker else found
