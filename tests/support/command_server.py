"""Runs `runtime` commands in forked processes, so that their imports are made once for all tests.

Importing takes 0.7 s of a command, and tests run hundreds. A command has its own process,
environment, folder and standard streams, and ends as Python does. `tests.support.command` starts
this program. `tests/unit/test_quick_commands.py` and the tests of `runtime serve` run the installed
script.
"""

import gc
import json
import os
import select
import signal
import socket
import sys
from importlib import import_module
from typing import Any

import runtime.cli

_MOST_BYTES = 1_000_000


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """The request, one line of JSON, and its standard input, output and error."""
    data, streams, _, _ = socket.recv_fds(connection, _MOST_BYTES, 3)
    while not data.endswith(b"\n"):
        more = connection.recv(_MOST_BYTES)
        if not more:
            raise EOFError
        data += more
    request: dict[str, Any] = json.loads(data)
    return request, streams


def become(request: dict[str, Any], streams: list[int]) -> None:
    """Make this forked process that of the command."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = request["command"]


def serve(listener: socket.socket, parent: int) -> None:
    """Fork a process for each connection until the other end of the pipe `parent` is closed.

    Returns in each forked process too, which then has to run its command.
    """
    woken, wakes = socket.socketpair()
    wakes.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakes.fileno())
    running: dict[int, socket.socket] = {}
    while True:
        ready = select.select([listener.fileno(), parent, woken.fileno()], [], [])[0]
        if parent in ready:
            sys.exit()
        if woken.fileno() in ready:
            woken.recv(4096)
            for pid in list(running):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    with running.pop(pid) as connection:
                        connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
        if listener.fileno() in ready:
            connection, _ = listener.accept()
            request, streams = receive(connection)
            pid = os.fork()
            if pid == 0:
                for each in (listener, woken, wakes, connection, *running.values()):
                    each.close()
                os.close(parent)
                become(request, streams)
                return
            running[pid] = connection
            connection.sendall(b"%d\n" % pid)
            for stream in streams:
                os.close(stream)


if __name__ == "__main__":
    for name in runtime.cli.COMMANDS:
        if name != "resume":
            import_module(f"runtime.cli.{name.replace('-', '_')}")
    gc.collect()
    gc.freeze()
    serve(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))
    runtime.cli.main()
