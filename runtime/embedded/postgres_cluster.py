"""A PostgreSQL data directory, and the commands that create, serve and address it."""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import SIGINT, SIGKILL, Signals
from urllib.parse import quote

from runtime.embedded.identity import choose_identity
from runtime.embedded.postgres_programs import find_programs
from runtime.embedded.postgres_roles import (
    DATABASE,
    FUNCTIONS,
    SUPERUSER,
    Passwords,
    fingerprint,
    ownership_script,
    roles_script,
)
from runtime.embedded.postgres_socket import (
    PORT,
    make_socket_directory,
    remove_socket_directory,
)
from runtime.embedded.private_files import write_private
from runtime.embedded.processes import Identity, launch_command

# The first is the process id, the last the state (source: PostgreSQL's pidfile.h).
_PID_FILE_LINES = 8

_INITDB_OPTIONS = (
    *("--encoding", "UTF8", "--locale", "C"),
    *("--auth", "scram-sha-256", "--pwfile"),
)

# A failed statement ends the run with an exit code; it may contain a password, so it is not shown.
_SINGLE_USER_OPTIONS = ("exit_on_error=on", "log_min_error_statement=panic")

_OPTIONS: Mapping[str, str] = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    "shared_buffers": "256MB",
    "max_wal_size": "2GB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # A statement or a violated key in the log would show payloads.
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
}


@dataclass(frozen=True, slots=True)
class Step:
    """A command that runs to its end, and its standard input."""

    command: list[str]
    stdin: bytes = b""


@dataclass(frozen=True, slots=True)
class PostgresCluster:
    """A server's data directory. Only the server's user and root can open the server's socket.

    Attributes:
        directory: absolute; holds `data/`, the log and, if its path is short enough, the socket.
    """

    directory: Path
    passwords: Passwords
    programs: Path
    identity: Identity | None
    socket_directory: Path

    @classmethod
    def at(cls, directory: Path, passwords: Passwords) -> "PostgresCluster":
        """Create the folders of the cluster in `directory`, but no data.

        Raises:
            ConfigError: PostgreSQL's programs are missing, or its user cannot reach them.
        """
        data = directory / "data"
        programs = find_programs(data)
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        identity = choose_identity(directory, [programs / "postgres", programs / "initdb"])
        socket_directory = make_socket_directory(directory, data)
        cluster = cls(directory, passwords, programs, identity, socket_directory)
        cluster._own(socket_directory)
        return cluster

    @property
    def data(self) -> Path:
        """The data directory itself; in a command line it identifies a server of this cluster."""
        return self.directory / "data"

    @property
    def log(self) -> Path:
        """The file of the server's standard error."""
        return self.directory / "postgres.log"

    @property
    def exists(self) -> bool:
        """Whether the data exists."""
        return (self.data / "PG_VERSION").exists()

    @property
    def has_roles(self) -> bool:
        """Whether the data has the roles with the current passwords."""
        try:
            return self._roles_marker.read_text(encoding="ascii") == fingerprint(self.passwords)
        except OSError:
            return False

    def dsn(self, database: str = DATABASE) -> str:
        """The address for functions and migrations, for asyncpg, SQLAlchemy and psql."""
        return make_dsn(self.socket_directory, FUNCTIONS, self.passwords.functions, database)

    def superuser_dsn(self, database: str = DATABASE) -> str:
        """The address for an administrator."""
        return make_dsn(self.socket_directory, SUPERUSER, self.passwords.superuser, database)

    def begin(self) -> list[Step]:
        """The steps that create new data, before `commit`. A killed start leaves no `data/`."""
        self._discard()
        password_file = self.directory / "password.new"
        write_private(password_file, self.passwords.superuser + "\n")
        self._own(password_file)
        target = ("-D", self._unfinished, "-U", SUPERUSER)
        initdb = (self.programs / "initdb", *target, *_INITDB_OPTIONS, password_file)
        return [
            Step(self._launch(initdb, SIGKILL)),
            *self._steps_for_roles(self._unfinished, is_new=True),
        ]

    def commit(self) -> None:
        """Move the data that the steps of `begin` created to its place."""
        self._unfinished.rename(self.data)
        self._discard()
        self.keep_roles()

    def steps_for_roles(self) -> list[Step]:
        """The steps that write the roles to existing data while no server runs on it."""
        return self._steps_for_roles(self.data, is_new=False)

    def keep_roles(self) -> None:
        """Record that the data has the roles."""
        write_private(self._roles_marker, fingerprint(self.passwords))

    def forget_socket(self) -> None:
        """Remove the socket's folder if it is outside the cluster's, after the server has ended."""
        remove_socket_directory(self.socket_directory, self.directory)

    def server_command(self, options: Mapping[str, str] | None = None) -> list[str]:
        """The command line that serves the data until SIGINT or the host's death."""
        socket_list = '"' + str(self.socket_directory).replace('"', '""') + '"'
        settings = {**_OPTIONS, "unix_socket_directories": socket_list, **(options or {})}
        program: list[str | Path] = [self.programs / "postgres", "-D", self.data, "-p", str(PORT)]
        for name, value in settings.items():
            program += ["-c", f"{name}={value}"]
        return self._launch(program, SIGINT)

    def environment(self) -> dict[str, str]:
        """The server's whole environment, without the host's `PG*` variables.

        When the process id of a killed server, left in `postmaster.pid`, belongs to another process
        by now, PostgreSQL takes that process for the old server and does not start; unless the id
        is that of its own grandparent (source: `CreateLockFile` in its miscinit.c). The host holds
        the lock on the directory and has ended orphans, so the process with the id is not a server
        of this data. PostgreSQL's check of the old server's shared memory stays in force.
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
        """The last fatal line of the server's output, with the lines that explain it."""
        lines = written.splitlines()
        for number in range(len(lines) - 1, -1, -1):
            if "FATAL:" in lines[number]:
                return " ".join(line.split("FATAL:")[-1].strip() for line in lines[number:][:4])
        return " ".join(written.split())[-500:]

    def _steps_for_roles(self, data: Path, *, is_new: bool) -> list[Step]:
        def single(database: str, script: str) -> Step:
            program: list[str | Path] = [self.programs / "postgres", "--single", "-j", "-D", data]
            for setting in _SINGLE_USER_OPTIONS:
                program += ["-c", setting]
            return Step(self._launch([*program, database], SIGKILL), script.encode())

        return [
            single("postgres", roles_script(self.passwords, is_new=is_new)),
            single(DATABASE, ownership_script()),
        ]

    @property
    def _roles_marker(self) -> Path:
        return self.directory / "roles"

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
            os.chown(path, self.identity.user, self.identity.group, follow_symlinks=False)

    def _read_pid_file(self) -> list[str]:
        try:
            return (self.data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []


def make_dsn(socket_directory: Path, role: str, password: str, database: str = DATABASE) -> str:
    """Build the address of a server that listens in `socket_directory`."""
    host = quote(str(socket_directory), safe="")
    return f"postgresql://{role}:{quote(password, safe='')}@/{database}?host={host}"
