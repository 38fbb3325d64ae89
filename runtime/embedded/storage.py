"""How much of the disk JetStream may take, with room kept for PostgreSQL."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_KEPT_SHARE = 4
# With every byte promised to a stream, JetStream makes none any more, not even one without a limit.
_SPARE = 256_000_000


@dataclass(frozen=True, slots=True)
class StorageRoom:
    """What was chosen, in bytes, and from what.

    Attributes:
        max_file: JetStream stores no more, and refuses streams whose limits exceed it together.
        room: three quarters of what is free, and what JetStream has already.
        limits: of all streams together.
    """

    max_file: int
    room: int
    limits: int

    @property
    def is_exceeded(self) -> bool:
        """Whether streams that are filled up to their limits would not fit on the disk."""
        return self.limits > self.room


def choose_room(directory: Path, limits: Mapping[str, int]) -> StorageRoom:
    """The room for JetStream below `directory`. Reads the disk; for a thread.

    A quarter of what is free stays for PostgreSQL and everybody else. JetStream makes no stream
    whose limit does not fit below `max_file` with all others, so that limits which a person chose
    win over the disk: a host that starts and warns is worth more than none.

    Args:
        directory: of the server.
        limits: of streams that will be made, in bytes, by name.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    free = shutil.disk_usage(directory).free
    room = _used(directory / "jetstream") + free - free // _KEPT_SHARE
    together = sum({**_limits_on_disk(directory / "jetstream"), **limits}.values())
    return StorageRoom(max_file=max(room, together + _SPARE), room=room, limits=together)


def _used(directory: Path) -> int:
    return sum(path.lstat().st_blocks * 512 for path in directory.rglob("*") if path.is_file())


def _limits_on_disk(directory: Path) -> dict[str, int]:
    """Limits of the streams that are there already. Source: nats-server, `filestore.go`."""
    limits = {}
    for path in directory.glob("*/streams/*/meta.inf"):
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
            limits[str(config["name"])] = max(0, int(config.get("max_bytes", 0)))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            # Damaged, of which the server says more.
            continue
    return limits
