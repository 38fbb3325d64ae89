"""Maps each entry of a manifest to its file and line, for problems that are found later."""

from collections.abc import Mapping
from types import MappingProxyType

Path = tuple[str | int, ...]


class Positions:
    """Maps a path into the manifest, such as `("functions", "ingest", "timeout")`, to `file:line`.

    All positions are equal, so that manifests with equal content are equal.
    """

    __slots__ = ("_origins", "_places")

    def __init__(
        self,
        places: Mapping[Path, str] = MappingProxyType({}),
        origins: Mapping[Path, Path] = MappingProxyType({}),
    ) -> None:
        """`origins` has the path as written of each value that a function has from elsewhere."""
        self._places = places
        self._origins = origins

    def where(self, *path: str | int) -> str:
        """`file:line` of the entry or the nearest one around it; `manifest` when none is known."""
        for end in range(len(path), 0, -1):
            if place := self._places.get(path[:end]):
                return place
        return "manifest"

    def origin(self, *path: str | int) -> Path:
        """The path at which the value is written: under `defaults`, or `triggers` of a function."""
        for end in range(len(path), 0, -1):
            if written := self._origins.get(path[:end]):
                return (*written, *path[end:])
        return path

    def field(self, *path: str | int) -> str:
        """Format the path at which the value is written, for a problem."""
        return dotted(self.origin(*path))

    def knows(self, *path: str | int) -> bool:
        """Whether the place of exactly this entry is known."""
        return path in self._places

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Positions)

    def __hash__(self) -> int:
        return hash(Positions)


def dotted(path: Path) -> str:
    """Format a path for a person: `functions.ingest.consumer.filter_subjects[0]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
