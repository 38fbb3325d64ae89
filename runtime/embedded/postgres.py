"""The embedded PostgreSQL, on a Unix socket that only its own user and root can open."""

import asyncio
import signal
from collections.abc import Sequence
from pathlib import Path

from runtime.embedded.postgres_cluster import PostgresCluster, Step
from runtime.embedded.postgres_roles import Passwords
from runtime.embedded.supervision import Launch, ServerSupervisor
from runtime.errors import ConfigError, Problem


class EmbeddedPostgres:
    """A PostgreSQL that runs as long as the host; its data outlives the host.

    Args:
        directory: absolute path; contains the data, the log and the socket.
        passwords: passwords of its roles; changed passwords are written to the data.
    """

    name = "postgres"
    # Fast shutdown: clients are disconnected, all data is written, and the next start needs no
    # recovery.
    stop_signal = signal.SIGINT
    stop_timeout_s = 60.0

    def __init__(self, directory: Path, passwords: Passwords) -> None:
        self._cluster = PostgresCluster.at(directory, passwords)
        self.proof = str(self._cluster.data)
        self.log = self._cluster.log
        self.supervisor = ServerSupervisor(self)

    @property
    def dsn(self) -> str:
        """The address for functions and migrations, password included."""
        return self._cluster.dsn()

    @property
    def superuser_dsn(self) -> str:
        """The address for an administrator, password included."""
        return self._cluster.superuser_dsn()

    async def start(self) -> None:
        """Start the server, with new data the first time; return when it accepts connections.

        Raises:
            ConfigError: the server cannot start; contains the server's reason.
        """
        await self.supervisor.start()

    async def stop(self) -> None:
        """Shut the server down cleanly, and disconnect all clients."""
        await self.supervisor.stop()
        await asyncio.to_thread(self._cluster.forget_socket)

    async def prepare(self) -> Launch:
        """Create the data if there is none, and write the roles to it."""
        if not self._cluster.exists:
            await self._run(self._cluster.begin())
            self._cluster.commit()
        elif not self._cluster.has_roles:
            await self._run(self._cluster.steps_for_roles())
            self._cluster.keep_roles()
        return Launch(self._cluster.server_command(), self._cluster.environment())

    async def is_ready(self, server: int) -> bool:
        """Whether the server accepts connections."""
        return self._cluster.is_ready(server)

    def find_complaint(self, written: str) -> str:
        """The last fatal line, and the lines that explain it."""
        return self._cluster.find_complaint(written)

    def is_passing(self, complaint: str) -> bool:
        """Whether the children of a killed postmaster still hold its shared memory."""
        return "still in use" in complaint

    async def _run(self, steps: Sequence[Step]) -> None:
        for step in steps:
            child = await asyncio.create_subprocess_exec(
                *step.command,
                env=self._cluster.environment(),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
            )
            try:
                _, stderr = await child.communicate(step.stdin)
            except BaseException:
                child.kill()
                await child.wait()
                raise
            if child.returncode != 0:
                reason = " ".join(stderr.decode(errors="replace").split())[-500:]
                raise ConfigError(
                    [
                        Problem(
                            where=str(self._cluster.directory),
                            field="",
                            wrong=f"PostgreSQL cannot prepare its data here: {reason}",
                            remedy="choose another RUNTIME_DATA_DIR, or set DATABASE_URL to a "
                            "running server",
                        )
                    ]
                )
