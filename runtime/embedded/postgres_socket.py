"""Chooses the folder of PostgreSQL's socket: its own, or a private one for a long path."""

import os
import stat
import tempfile
from pathlib import Path

# Only part of the socket file's name: the server listens on no TCP port.
PORT = 5432
# Longest path of a socket on every supported system (source: unix(7), and 104 bytes on macOS).
_SOCKET_PATH_BYTES = 103
# The line of `postmaster.pid` with the folder (source: PostgreSQL's pidfile.h).
_SOCKET_LINE = 4
_PREFIX = "runtime-postgres-"


def make_socket_directory(directory: Path, data: Path) -> Path:
    """Create the socket's folder for the server of `data`: `directory`, or a new private folder.

    A folder that an earlier host left is used again only if no other user can have created it.
    """
    if _fits(directory):
        return directory
    former = find_socket_directory(data)
    if former is not None and former.name.startswith(_PREFIX) and _is_private(former, directory):
        return former
    return Path(tempfile.mkdtemp(prefix=_PREFIX))


def find_socket_directory(data: Path) -> Path | None:
    """The socket's folder that the server of `data` has written; None when it does not run."""
    try:
        lines = (data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return Path(lines[_SOCKET_LINE]) if len(lines) > _SOCKET_LINE and lines[_SOCKET_LINE] else None


def remove_socket_directory(socket_directory: Path, directory: Path) -> None:
    """Remove the private folder of `make_socket_directory`, after the server has ended."""
    if socket_directory != directory:
        for path in socket_directory.glob(".s.PGSQL.*"):
            path.unlink(missing_ok=True)
        socket_directory.rmdir()


def _fits(directory: Path) -> bool:
    return len(os.fsencode(directory / f".s.PGSQL.{PORT}")) <= _SOCKET_PATH_BYTES


def _is_private(folder: Path, directory: Path) -> bool:
    """Whether `folder` is a folder, not a link, that only the owner of `directory` can enter."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    is_closed = stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o077
    return is_closed and found.st_uid == directory.stat().st_uid
