"""Chooses the user that PostgreSQL runs as: it refuses root, so a root host needs another."""

import os
import pwd
import stat
from collections.abc import Iterable
from pathlib import Path

from runtime.embedded.processes import Identity
from runtime.errors import ConfigError, Problem
from runtime.observe.logs import get_logger

log = get_logger("runtime.embedded")

_USERS = ("postgres", "nobody")
_CAP_DAC_OVERRIDE = 1
_CAP_DAC_READ_SEARCH = 2
# Needed for a moment, to pass one of the other capabilities to the server.
_CAP_SETPCAP = 8
_NAMES = {_CAP_DAC_OVERRIDE: "CAP_DAC_OVERRIDE", _CAP_DAC_READ_SEARCH: "CAP_DAC_READ_SEARCH"}


def choose_identity(directory: Path, programs: Iterable[Path]) -> Identity | None:
    """The user for a server with data in `directory`; None when the host's own user suffices.

    Existing data keeps its owner. New data belongs to the user `postgres` if it exists, or else to
    `nobody`, and `directory` is given to that user. These users cannot enter a project under /root,
    so there the server keeps one capability: the narrow CAP_DAC_READ_SEARCH if the host has it
    (containers mostly do not), or else CAP_DAC_OVERRIDE. Copies of programs and data elsewhere
    would be hard to find, and the host must not change the folder's permissions.

    Raises:
        ConfigError: there is no such user, or the user cannot enter a folder.
    """
    if os.geteuid() != 0:
        return None
    user = _find_user(directory)
    # First: a new folder belongs to root, and the check below needs the final owner.
    os.chown(directory, user.pw_uid, user.pw_gid)
    paths = [directory, *programs]
    closed = next((path for path in paths if (find_closed(path, user)) is not None), None)
    if closed is None:
        return Identity(user.pw_uid, user.pw_gid)
    executable = all(_allows(path.stat(), user, stat.S_IXOTH) for path in programs)
    wanted = [_CAP_DAC_READ_SEARCH, _CAP_DAC_OVERRIDE] if executable else [_CAP_DAC_OVERRIDE]
    held = _held_capabilities()
    for capability in wanted:
        if held >> _CAP_SETPCAP & held >> capability & 1:
            log.warning(
                "PostgreSQL keeps a capability, as its user cannot pass a folder; move the project "
                "or RUNTIME_DATA_DIR to an open one to do without",
                user=user.pw_name,
                folder=str(find_closed(closed, user)),
                capability=_NAMES[capability],
            )
            return Identity(user.pw_uid, user.pw_gid, capability)
    raise ConfigError(
        [
            Problem(
                where=str(find_closed(closed, user)),
                field="",
                wrong=f"PostgreSQL refuses root, and user {user.pw_name}, which it runs as, cannot "
                "pass here",
                remedy="move the project or RUNTIME_DATA_DIR to a folder open to that user, run "
                "the host as an ordinary user, or set DATABASE_URL to a running server",
            )
        ]
    )


def find_closed(path: Path, user: pwd.struct_passwd) -> Path | None:
    """The first part of `path`, itself included, that `user` cannot enter or execute."""
    for place in [*reversed(path.parents), path]:
        if place.exists() and not _allows(place.stat(), user, stat.S_IXOTH):
            return place
    return None


def _allows(status: os.stat_result, user: pwd.struct_passwd, bit: int) -> bool:
    if status.st_uid == user.pw_uid:
        return bool(status.st_mode & (bit << 6))
    if status.st_gid == user.pw_gid:
        return bool(status.st_mode & (bit << 3))
    return bool(status.st_mode & bit)


def _find_user(directory: Path) -> pwd.struct_passwd:
    owner = directory.stat().st_uid if directory.exists() else 0
    try:
        if owner != 0:
            return pwd.getpwuid(owner)
    except KeyError:
        raise ConfigError(
            [
                Problem(
                    where=str(directory),
                    field="",
                    wrong=f"it belongs to user id {owner}, which this machine does not know",
                    remedy="run the host as its owner, or choose another RUNTIME_DATA_DIR",
                )
            ]
        ) from None
    for name in _USERS:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise ConfigError(
        [
            Problem(
                where="PostgreSQL",
                field="",
                wrong=f"it cannot run as root, and there is no user {' or '.join(_USERS)}",
                remedy="run the host as an ordinary user, or set DATABASE_URL to a running server",
            )
        ]
    )


def _held_capabilities() -> int:
    """The capabilities that this process may pass on, as a bit mask; 0 on other systems."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    for line in status.read_text().splitlines():
        if line.startswith("CapPrm:"):
            return int(line.split()[1], 16)
    return 0
