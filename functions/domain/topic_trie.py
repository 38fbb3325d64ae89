"""Finds the topic filters that match a topic, without looking at the others."""

from collections.abc import Iterable
from typing import Generic, TypeVar

V = TypeVar("V")


class TopicTrie(Generic[V]):
    """Values by their MQTT topic filter, as a tree of the filters' levels.

    A look-up visits the nodes that a level, or `+` in its place, leads to: at most two for each
    level of the topic and filter on the way. So its time depends on the topic's levels and on the
    number of matches, and not on how many filters there are.
    """

    __slots__ = ("_root", "_size")

    def __init__(self, entries: Iterable[tuple[str, V]] = ()) -> None:
        """`entries`: valid topic filters, each with its value."""
        self._root: _Node[V] = _Node()
        self._size = 0
        for topic_filter, value in entries:
            self.add(topic_filter, value)

    def __len__(self) -> int:
        return self._size

    def add(self, topic_filter: str, value: V) -> None:
        """Add a value under a valid topic filter; a filter may have several."""
        node = self._root
        *before, last = topic_filter.split("/")
        for level in before:
            node = node.child(level)
        entry = (self._size, value)
        if last == "#":
            node.with_all_below.append(entry)
        else:
            node.child(last).here.append(entry)
        self._size += 1

    def matching(self, topic: str) -> list[V]:
        """The values whose filter matches the topic, in the order in which they were added."""
        nodes = [self._root]
        found: list[tuple[int, V]] = []
        for level in topic.split("/"):
            deeper: list[_Node[V]] = []
            for node in nodes:
                found += node.with_all_below
                if (exact := node.children.get(level)) is not None:
                    deeper.append(exact)
                # A topic's own level may be a `+`, whose child was just taken.
                if level != "+" and (any_level := node.children.get("+")) is not None:
                    deeper.append(any_level)
            nodes = deeper
        for node in nodes:
            found += node.here
            found += node.with_all_below
        found.sort(key=_order)
        return [value for _, value in found]


class _Node(Generic[V]):
    """A level of filters.

    Attributes:
        here: the filters that end with this level.
        with_all_below: those that go on with `#`, which matches this level and all below it.
    """

    __slots__ = ("children", "here", "with_all_below")

    def __init__(self) -> None:
        self.children: dict[str, _Node[V]] = {}
        self.here: list[tuple[int, V]] = []
        self.with_all_below: list[tuple[int, V]] = []

    def child(self, level: str) -> "_Node[V]":
        found = self.children.get(level)
        if found is None:
            found = self.children[level] = _Node()
        return found


def _order(entry: tuple[int, object]) -> int:
    return entry[0]


__all__ = ["TopicTrie"]
