"""Writes files with mode 0600, safely in a folder where another user may place links.

PostgreSQL's folder belongs to another user when the host is root. A symbolic link of that user must
not make root write, or change the owner of, a file elsewhere.
"""

import os
import secrets
from pathlib import Path


def write_private(path: Path, text: str) -> None:
    """Replace the file with `text`, mode 0600; a link at `path` is replaced, never followed."""
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(8)}.new")
    handle = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def open_log(path: Path) -> int:
    """Open the file for appending, and create it with mode 0600 if it does not exist.

    Raises:
        OSError: ELOOP, the path is a symbolic link.
    """
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    os.fchmod(handle, 0o600)
    return handle
