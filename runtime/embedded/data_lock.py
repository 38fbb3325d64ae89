"""One host per data directory."""

import fcntl
import os
from pathlib import Path

from runtime.errors import ConfigError, Problem


class DataLock:
    """Held by the host whose servers keep their data in a directory.

    The system gives it up when the host ends, however it ends; servers that outlive a killed host
    do not hold it, as files that Python opens are not inherited.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._handle: int | None = None

    def acquire(self) -> None:
        """Take it.

        Raises:
            ConfigError: another host has it; the error names the directory and the process.
        """
        path = self._directory / "lock"
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            holder = path.read_text(encoding="ascii").strip()
            raise ConfigError(
                [
                    Problem(
                        where=str(self._directory),
                        field="",
                        wrong=f"another host, process {holder or 'unknown'}, keeps its data here",
                        remedy="stop it, or set another RUNTIME_DATA_DIR, or set NATS_URL and "
                        "DATABASE_URL to share its servers",
                    )
                ]
            ) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        self._handle = handle

    def release(self) -> None:
        """Give it up; nothing when it is not held."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
