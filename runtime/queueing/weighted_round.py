"""Weighted round-robin queue by level: every level with members gets its share of the turns.

The levels of a priority: with weights 8 and 1, eight of nine turns go to the first level while both
have members, and all turns to either while the other has none. No level waits for ever. No I/O.
"""

from collections import deque
from collections.abc import Sequence
from math import lcm
from typing import Generic, Protocol, TypeVar


class Leveled(Protocol):
    """Anything that belongs to a level."""

    level: int
    """Index of its weight."""


T = TypeVar("T", bound=Leveled)


class WeightedRound(Generic[T]):
    """The members of several levels; has the methods of a `deque` that a round needs.

    Self-clocked fair queueing: a level's next turn is due its stride after its last one, or after
    the present turn if it had no members meanwhile; the stride is inverse to the weight. The level
    whose turn is due first is next, of equal ones the first.

    Args:
        weights: the weight of each level.
    """

    def __init__(self, weights: Sequence[int]) -> None:
        common = lcm(*weights)
        self._strides = [common // weight for weight in weights]
        self._members: list[deque[T]] = [deque() for _ in weights]
        self._last = [0] * len(weights)
        self._now = 0

    def __bool__(self) -> bool:
        return any(self._members)

    def __getitem__(self, place: int, /) -> T:
        """The member that `popleft` would return; for place 0 alone."""
        return self._members[self._next_level()][place]

    def append(self, member: T, /) -> None:
        """Add a member behind those of its level."""
        members = self._members[member.level]
        if not members:
            self._last[member.level] = max(self._last[member.level], self._now)
        members.append(member)

    def popleft(self) -> T:
        """Remove the first member of the level whose turn it is.

        Raises:
            IndexError: there is none.
        """
        level = self._next_level()
        self._now = self._last[level] = self._last[level] + self._strides[level]
        return self._members[level].popleft()

    def remove(self, member: T, /) -> None:
        """Remove a member.

        Raises:
            ValueError: it is not there.
        """
        self._members[member.level].remove(member)

    def _next_level(self) -> int:
        levels = [level for level, members in enumerate(self._members) if members]
        if not levels:
            raise IndexError("no level has a member")
        return min(levels, key=lambda level: self._last[level] + self._strides[level])


__all__ = ["Leveled", "WeightedRound"]
