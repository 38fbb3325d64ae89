"""Where in which file each entry of a manifest stands, so that a mistake found later can say so."""

from collections.abc import Mapping
from types import MappingProxyType

Path = tuple[str | int, ...]


class Positions:
    """Maps a path into the manifest, such as `("functions", "ingest", "timeout")`, to `file:line`.

    All are equal, as two manifests that say the same are, wherever they say it.
    """

    __slots__ = ("_places",)

    def __init__(self, places: Mapping[Path, str] = MappingProxyType({})) -> None:
        self._places = places

    def where(self, *path: str | int) -> str:
        """`file:line` of the entry or the nearest one around it; `manifest` when none is known."""
        for end in range(len(path), 0, -1):
            if place := self._places.get(path[:end]):
                return place
        return "manifest"

    def knows(self, *path: str | int) -> bool:
        """Whether this very entry stands in a file."""
        return path in self._places

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Positions)

    def __hash__(self) -> int:
        return hash(Positions)


def dotted(path: Path) -> str:
    """A path as people read it: `functions.ingest.consumer.filter_subjects[0]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
