"""Chooses how much of the disk JetStream may use, with room left for PostgreSQL."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_KEPT_SHARE = 4
# With every byte reserved by streams, JetStream creates no more, not even one without a limit.
_SPARE = 256_000_000


@dataclass(frozen=True, slots=True)
class StorageRoom:
    """The chosen limit of JetStream, and its inputs, in bytes.

    Attributes:
        max_file: the most that JetStream stores; it refuses streams whose limits together exceed
            this.
        room: three quarters of the free space, plus what JetStream uses already.
        limits: the limits of all streams together.
    """

    max_file: int
    room: int
    limits: int

    @property
    def is_exceeded(self) -> bool:
        """Whether the streams, when full, would not fit on the disk."""
        return self.limits > self.room


def choose_room(directory: Path, limits: Mapping[str, int]) -> StorageRoom:
    """Choose the room for JetStream below `directory`. Reads the disk; for a thread.

    A quarter of the free space is left for PostgreSQL and other programs. JetStream creates no
    stream whose limit does not fit into `max_file` with all others. So limits that a person chose
    count more than the disk: the host starts and warns, instead of not starting.

    Args:
        directory: the server's directory.
        limits: limits of the streams that will be created, in bytes, by name.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    free = shutil.disk_usage(directory).free
    room = _used(directory / "jetstream") + free - free // _KEPT_SHARE
    together = sum({**_limits_on_disk(directory / "jetstream"), **limits}.values())
    return StorageRoom(max_file=max(room, together + _SPARE), room=room, limits=together)


def _used(directory: Path) -> int:
    return sum(path.lstat().st_blocks * 512 for path in directory.rglob("*") if path.is_file())


def _limits_on_disk(directory: Path) -> dict[str, int]:
    """Limits of the streams that exist already. Source: nats-server, `filestore.go`."""
    limits = {}
    for path in directory.glob("*/streams/*/meta.inf"):
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
            limits[str(config["name"])] = max(0, int(config.get("max_bytes", 0)))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            # Damaged, which the server itself reports.
            continue
    return limits
