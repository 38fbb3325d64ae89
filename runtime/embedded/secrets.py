"""Generates the host's secrets and stores them in files that only their owner may read."""

import os
import secrets
from pathlib import Path

from runtime.errors import ConfigError, Problem

_BYTES = 32


def keep_secret(path: Path) -> str:
    """The secret in `path`, generated if there is none: 43 characters of `A-Za-z0-9_-`.

    A host killed meanwhile leaves no file, and two hosts at once get the same secret.

    Raises:
        ConfigError: the file is empty, or cannot be read or written.
    """
    try:
        if not path.exists():
            _create(path)
        secret = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(
            [Problem(str(path), "", f"cannot be used: {error.strerror}", "make it readable to us")]
        ) from error
    if not secret:
        raise ConfigError(
            [Problem(str(path), "", "it is empty", "delete it, and a new one is made")]
        )
    return secret


def _create(path: Path) -> None:
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.new")
    unfinished.unlink(missing_ok=True)
    handle = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(secrets.token_urlsafe(_BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
        path.hardlink_to(unfinished)
    except FileExistsError:
        return  # Another host was first; its secret is used.
    finally:
        unfinished.unlink()
