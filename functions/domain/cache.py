"""Bounded read-through cache of database rows, invalidated by change notifications."""

from collections.abc import Awaitable, Callable, Iterable, Set
from typing import Generic, TypeVar

from functions.domain.changes import ChangeListener

K = TypeVar("K")
V = TypeVar("V")


class Cache(Generic[K, V]):
    """Values by key, each loaded once. The absence of a value is cached too.

    Args:
        load: takes the missing keys and returns the values found, in one query.
        max_size: bound on the present keys, and again on the absent keys. Each set is emptied by
            itself when it is full, so a flood of unknown keys does not evict the known ones.
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
        """The value of every key. Loads all of them while `changes` is not trusted."""
        wanted = keys if isinstance(keys, Set) else set(keys)
        values: dict[K, V | None] = {}
        if changes.trusted:
            get = self._found.get
            values = {key: value for key in wanted if (value := get(key)) is not None}
            if len(values) == len(wanted):
                return values
            values.update((key, None) for key in wanted - values.keys() if key in self._absent)
        if missing := wanted - values.keys():
            values.update(await self._fetch(missing))
        return values

    def peek(self, key: K) -> V | None:
        """The value, if it is here."""
        return self._found.get(key)

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

    async def _fetch(self, wanted: Set[K]) -> dict[K, V | None]:
        generation = self._generation
        loaded = await self._load(list(wanted))
        absent = wanted - loaded.keys()
        # The answer may lack a change made while the query ran: return it, but do not cache it.
        if generation == self._generation:
            if len(self._found) + len(loaded) > self._max_size:
                self._found.clear()
            if len(self._absent) + len(absent) > self._max_size:
                self._absent.clear()
            self._found.update(loaded)
            self._absent.update(absent)
        return {**loaded, **dict.fromkeys(absent)}


__all__ = ["Cache"]
