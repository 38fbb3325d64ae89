"""A bounded memory of what a database said, which forgets what changed."""

from collections.abc import Awaitable, Callable, Iterable
from typing import Generic, TypeVar

from functions.domain.changes import ChangeListener

K = TypeVar("K")
V = TypeVar("V")


class Cache(Generic[K, V]):
    """Values by key, each asked for once. None (there is none) is a value too, and is remembered.

    Args:
        load: gets the missing keys, returns what it found; one query for all of them.
        max_size: of each, found and not found. A full half is emptied, so that a flood of unknown
            keys cannot drive out the known ones.
    """

    def __init__(
        self, load: Callable[[list[K]], Awaitable[dict[K, V]]], *, max_size: int = 100_000
    ) -> None:
        self._load = load
        self._max_size = max_size
        self._found: dict[K, V] = {}
        self._absent: set[K] = set()
        self._generation = 0

    async def lookup(self, keys: Iterable[K], changes: ChangeListener) -> dict[K, V | None]:
        """The value of every key. Nothing remembered is used while changes are not heard."""
        wanted = set(keys)
        values: dict[K, V | None] = {}
        if changes.trusted:
            found, absent = self._found, self._absent
            values = {key: found.get(key) for key in wanted if key in found or key in absent}
            wanted.difference_update(values)
        if wanted:
            values.update(await self._fetch(wanted))
        return values

    def forget(self, selected: Callable[[K], bool]) -> None:
        """Drop the keys that the function selects."""
        self._generation += 1
        for key in [key for key in self._found if selected(key)]:
            del self._found[key]
        self._absent = {key for key in self._absent if not selected(key)}

    def forget_one(self, key: K) -> None:
        """Drop one key."""
        self._generation += 1
        self._found.pop(key, None)
        self._absent.discard(key)

    async def _fetch(self, wanted: set[K]) -> dict[K, V | None]:
        generation = self._generation
        loaded = await self._load(list(wanted))
        absent = wanted.difference(loaded)
        # What changed while the query ran may not be in its answer: good for now, not to keep.
        if generation == self._generation:
            if len(self._found) + len(loaded) > self._max_size:
                self._found.clear()
            if len(self._absent) + len(absent) > self._max_size:
                self._absent.clear()
            self._found.update(loaded)
            self._absent.update(absent)
        return {**loaded, **dict.fromkeys(absent)}


__all__ = ["Cache"]
