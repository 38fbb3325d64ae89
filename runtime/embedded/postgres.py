"""The embedded PostgreSQL: reached through a socket that its own user and root alone can open."""

import asyncio
import signal
from collections.abc import Sequence
from pathlib import Path

from runtime.embedded.postgres_cluster import PostgresCluster, Step
from runtime.embedded.postgres_roles import Passwords
from runtime.embedded.supervision import Launch, ServerSupervisor
from runtime.errors import ConfigError, Problem


class EmbeddedPostgres:
    """A PostgreSQL that lives as long as the host and keeps its data across hosts.

    Args:
        directory: absolute; holds the data, the log and the socket.
        passwords: of its roles; the data gets them when they have changed.
    """

    name = "postgres"
    # Fast shutdown: clients are cut off, all is written, and the next start has nothing to recover.
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
        """Return when it accepts connections; the first time its data is made.

        Raises:
            ConfigError: it cannot start; with the reason it gave.
        """
        await self.supervisor.start()

    async def stop(self) -> None:
        """Shut it down in order, whoever is connected."""
        await self.supervisor.stop()
        await asyncio.to_thread(self._cluster.forget_socket)

    async def prepare(self) -> Launch:
        """Make the data where there is none; have it know the roles."""
        if not self._cluster.exists:
            await self._run(self._cluster.begin())
            self._cluster.commit()
        elif not self._cluster.has_roles:
            await self._run(self._cluster.steps_for_roles())
            self._cluster.keep_roles()
        return Launch(self._cluster.server_command(), self._cluster.environment())

    async def is_ready(self, server: int) -> bool:
        """Whether it accepts connections."""
        return self._cluster.is_ready(server)

    def find_complaint(self, written: str) -> str:
        """The last fatal line, and what explains it."""
        return self._cluster.find_complaint(written)

    def is_passing(self, complaint: str) -> bool:
        """The children of a killed postmaster hold its shared memory for a moment longer."""
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
