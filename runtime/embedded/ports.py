"""The ports the host wants, checked before anything is started."""

import errno
import socket
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from runtime.errors import ConfigError, Problem


@dataclass(frozen=True, slots=True)
class WantedPort:
    """A port on 127.0.0.1, who wants it, and the variable that changes it. 0 is always free."""

    number: int
    wanted_by: str
    variable: str


def check_free(wanted: Sequence[WantedPort]) -> None:
    """Return when all of them can be listened on.

    Raises:
        ConfigError: naming every port that cannot, or that two want.
    """
    problems = [problem for port in wanted if (problem := _find_problem(port))]
    seen: dict[int, WantedPort] = {}
    for port in wanted:
        other = seen.setdefault(port.number, port)
        if port.number and other is not port:
            problems.append(
                Problem(
                    where=f"port {port.number}",
                    field="",
                    wrong=f"both {other.wanted_by} and {port.wanted_by} want it",
                    remedy=f"set {other.variable} or {port.variable} to another",
                )
            )
    if problems:
        raise ConfigError(problems)


def _find_problem(port: WantedPort) -> Problem | None:
    with socket.socket() as trial:
        # As the servers do: a closed connection that lingers is no hindrance, a listener is.
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("127.0.0.1", port.number))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                wrong = f"{port.wanted_by} wants it, and {_find_holder(port.number)} has it"
            else:
                wrong = f"{port.wanted_by} cannot listen on it: {error.strerror}"
            return Problem(
                where=f"port {port.number}",
                field="",
                wrong=wrong,
                remedy=f"end what has it, or set {port.variable} to another port",
            )
    return None


def _find_holder(number: int) -> str:
    try:
        for connection in psutil.net_connections("tcp"):
            address = connection.laddr
            if connection.status != psutil.CONN_LISTEN or not address or not connection.pid:
                continue
            if address.port == number:
                return f"process {connection.pid} ({psutil.Process(connection.pid).name()})"
    except psutil.Error:
        # Other users' processes cannot be seen everywhere.
        pass
    return "another process"
