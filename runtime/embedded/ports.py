"""Checks that the host's ports are free and distinct, before anything is started."""

import errno
import socket
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from runtime.errors import ConfigError, Problem


@dataclass(frozen=True, slots=True)
class WantedPort:
    """A port, its listener, and the variable or place that changes it. 0 is always free."""

    number: int
    wanted_by: str
    variable: str
    host: str = "127.0.0.1"


def check_free(wanted: Sequence[WantedPort]) -> None:
    """Check that all ports can be listened on.

    Raises:
        ConfigError: lists every port that cannot, or that two listeners want.
    """
    problems = [problem for port in wanted if (problem := _find_problem(port))]
    problems += _find_shared(wanted)
    if problems:
        raise ConfigError(problems)


def check_distinct(wanted: Sequence[WantedPort]) -> None:
    """Check that no two listeners want the same port.

    Raises:
        ConfigError: lists every port that two listeners want.
    """
    if problems := _find_shared(wanted):
        raise ConfigError(problems)


def _find_shared(wanted: Sequence[WantedPort]) -> list[Problem]:
    problems = []
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
    return problems


def _find_problem(port: WantedPort) -> Problem | None:
    try:
        family, _, _, _, address = socket.getaddrinfo(
            port.host, port.number, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError:
        return None  # The listener itself reports a bad name in more detail.
    with socket.socket(family) as trial:
        # As the servers do: a closed connection in TIME_WAIT does not block the port, a listener
        # does.
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(address)
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
