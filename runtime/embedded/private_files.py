"""Files for their owner alone, written where another user may have put something in the way.

PostgreSQL's folder belongs to another user when the host is root. Whatever that user puts there,
a symbolic link for example, must never lead root to write or to hand over a file elsewhere.
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
    """A handle that appends to the file, which is made with mode 0600 when there is none.

    Raises:
        OSError: ELOOP, there is a symbolic link.
    """
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    os.fchmod(handle, 0o600)
    return handle
