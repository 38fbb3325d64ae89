"""File lock that allows one host for each data directory."""

import fcntl
import os
from pathlib import Path

from runtime.errors import ConfigError, Problem


class DataLock:
    """Lock of the host whose servers use a data directory.

    The system releases the lock when the host ends, also when it is killed. Servers that outlive a
    killed host do not hold the lock, because files that Python opens are not inherited.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._handle: int | None = None

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            ConfigError: another host holds the lock; the error names the directory and the process.
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
        """Release the lock; nothing happens when it is not held."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
