"""One section of a shadow, `desired` or `reported`: merging, also of late messages. No I/O.

A section is a JSON object. Every write carries a stamp: nanoseconds since 1970; a later update has
the greater stamp. Merging follows AWS IoT: objects merge, `null` deletes, arrays and scalars are
replaced whole. Messages may arrive in another order than they were stored, so each place keeps the
stamp of its last write: *any* order of the same updates gives the same section, and the same update
twice changes nothing.

Two rules make that possible: an object without a leaf is not kept, and a deletion beneath a scalar
keeps the scalar.
Source: AWS IoT developer guide, "Device Shadow service documents".
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

Json: TypeAlias = dict[str, Any]
Node: TypeAlias = Any
"""The stamps of a place: `[written, beneath, nodes of the keys]`, or `written` alone.

`written` is the stamp of the newest write or deletion of exactly this place, and `beneath` of the
newest value written beneath it; 0 for none. A leaf's `written` is the time of its value.
"""

NS_PER_S = 1_000_000_000
# Bounds on the stamps of deleted places; the newest are kept. Without them, a device that sends a
# new key in every message would grow its row without bound. A dropped stamp can only let a very
# late message restore a key.
MAX_REMEMBERED = 512
MAX_REMEMBERED_BYTES = 16_384
_STAMP_BYTES = 24
_WRITTEN, _BENEATH, _NODES = range(3)
_ABSENT = object()


class _When(NamedTuple):
    """An update's stamp, and the newest stamp of what encloses the place that is merged."""

    stamp: int
    top: int


class Section:
    """One section's values, and the stamps that let late updates be merged correctly.

    An update of some values costs what these and the objects around them have, not what the whole
    section has, except for a look over the stamps.

    Args:
        values: the nested object.
        stamps: the node of the section itself, a list, in which every leaf of `values` has a stamp.

    Attributes:
        stamps: as given, changed by each merge.
        is_changed: whether an update was merged.
    """

    __slots__ = ("_metadata", "_values", "is_changed", "stamps")

    def __init__(self, values: Json | None = None, stamps: Node = None) -> None:
        self._values: Json = {} if values is None else values
        self.stamps: Node = [0, 0, {}] if stamps is None else stamps
        self._metadata: Json | None = None
        self.is_changed = False

    def merge(self, patch: object, stamp: int) -> None:
        """Apply an update made at `stamp`, in any order of stamps.

        A patch of None deletes the whole section.
        """
        if isinstance(patch, dict):
            self._values = _merge(self._values, self.stamps, patch, _When(stamp, 0))
        elif self.stamps[_WRITTEN] <= stamp:
            self.stamps[_WRITTEN] = stamp
            self._values = _prune(self._values, self.stamps, stamp)
            if self.stamps[_BENEATH] <= stamp:
                self.stamps[_BENEATH] = 0
        _forget(self._values, self.stamps)
        self._metadata = None
        self.is_changed = True

    def state(self) -> Json:
        """The section as a nested object. Do not change it; a later merge does not, either."""
        return self._values

    def metadata(self) -> Json:
        """The section's shape with `{"timestamp": seconds}` in place of each leaf."""
        if self._metadata is None:
            self._metadata = _metadata(self._values, self.stamps[_NODES], {})
        return self._metadata


def _merge(values: Json, node: Node, patch: Json, when: _When) -> Json:
    """The values of an object with a patch."""
    stamp, top = when
    top = max(top, node[_WRITTEN])
    if top <= stamp and node[_WRITTEN] < stamp and _has_value(patch):
        node[_BENEATH] = max(node[_BENEATH], stamp)
    merged, nodes = dict(values), node[_NODES]
    for key, new in patch.items():
        if isinstance(new, dict):
            _merge_object(merged, nodes, key, new, _When(stamp, top))
        else:
            _write(merged, nodes, key, new, _When(stamp, top))
    return merged


def _merge_object(merged: Json, nodes: Json, key: str, patch: Json, when: _When) -> None:
    old = merged.get(key)
    node = nodes.get(key, 0)
    if not isinstance(node, list):
        node = nodes[key] = [node, 0, {}]
    if not isinstance(old, dict) and node[_WRITTEN] <= when.stamp and _has_value(patch):
        merged.pop(key, None)  # A newer value beneath a leaf ends the leaf.
    below = _merge(old if isinstance(old, dict) else {}, node, patch, when)
    if below:
        merged[key] = below
    elif isinstance(old, dict):
        del merged[key]
    _fold(nodes, key)


def _write(merged: Json, nodes: Json, key: str, value: object, when: _When) -> None:
    """Write or delete one leaf."""
    stamp = when.stamp
    node = nodes.get(key, 0)
    is_inner = isinstance(node, list)
    if max(when.top, node[_WRITTEN] if is_inner else node) > stamp:
        return
    kept: Json = {}
    is_newest = True
    if is_inner:
        old = merged.get(key)
        node[_WRITTEN] = stamp
        kept = _prune(old if isinstance(old, dict) else {}, node, stamp)
        is_newest = node[_BENEATH] <= stamp
        if is_newest:
            node[_BENEATH] = 0
        _fold(nodes, key)
    else:
        nodes[key] = stamp
    if value is not None and is_newest:
        merged[key] = value
    elif kept:
        merged[key] = kept
    else:
        merged.pop(key, None)


def _prune(values: Json, node: Node, stamp: int) -> Json:
    """What was written beneath a place not before `stamp`; older stamps are of no use any more."""
    kept: Json = {}
    nodes = node[_NODES]
    for key, child in list(nodes.items()):
        old = values.get(key, _ABSENT)
        if not isinstance(child, list):
            if child < stamp:
                del nodes[key]
            elif old is not _ABSENT:
                kept[key] = old
            continue
        is_object = isinstance(old, dict)
        below = _prune(old if is_object else {}, child, stamp)
        if below:
            kept[key] = below
        elif not is_object and old is not _ABSENT and child[_WRITTEN] >= stamp:
            kept[key] = old
        for place in (_WRITTEN, _BENEATH):
            if child[place] < stamp:
                child[place] = 0
        _fold(nodes, key)
    return kept


def _fold(nodes: Json, key: str) -> None:
    """Write a node that has nothing beneath in its short form, and none for nothing."""
    written, beneath, below = nodes[key]
    if not below and not beneath:
        nodes[key] = written
        if not written:
            del nodes[key]


def _has_value(patch: Json) -> bool:
    return any(
        _has_value(value) if isinstance(value, dict) else value is not None
        for value in patch.values()
    )


def _metadata(values: Json, nodes: Json, times: dict[int, Json]) -> Json:
    shape: Json = {}
    for key, value in values.items():
        node = nodes[key]
        if isinstance(value, dict):
            shape[key] = _metadata(value, node[_NODES], times)
            continue
        stamp = node[_WRITTEN] if isinstance(node, list) else node
        time = times.get(stamp)
        if time is None:
            time = times[stamp] = {"timestamp": stamp // NS_PER_S}
        shape[key] = time
    return shape


def _forget(values: Json, root: Node) -> None:
    """Drop the oldest stamps of what is gone, beyond the bounds."""
    gone = list(_find_gone(values, root[_NODES]))
    if len(gone) <= MAX_REMEMBERED and sum(each[1] for each in gone) <= MAX_REMEMBERED_BYTES:
        return
    gone.sort(key=lambda each: -each[0])
    size_bytes = 0
    for number, (_, cost_bytes, nodes, key) in enumerate(gone):
        size_bytes += cost_bytes
        if number >= MAX_REMEMBERED or size_bytes > MAX_REMEMBERED_BYTES:
            del nodes[key]


def _find_gone(values: Json, nodes: Json) -> Iterator[tuple[int, int, Json, str]]:
    """Stamps of places without a value: the newest, their bytes, and where they are."""
    for key, node in nodes.items():
        value = values.get(key, _ABSENT)
        if value is _ABSENT:
            newest, size_bytes = _measure(node)
            yield newest, len(key.encode()) + size_bytes, nodes, key
        elif isinstance(node, list):
            yield from _find_gone(value if isinstance(value, dict) else {}, node[_NODES])


def _measure(node: Node) -> tuple[int, int]:
    """The newest stamp of a node and all beneath, and their bytes."""
    if not isinstance(node, list):
        return node, _STAMP_BYTES
    written, beneath, nodes = node
    newest, size_bytes = max(written, beneath), 2 * _STAMP_BYTES
    for key, child in nodes.items():
        stamp, child_bytes = _measure(child)
        newest, size_bytes = max(newest, stamp), size_bytes + len(key.encode()) + child_bytes
    return newest, size_bytes


def read_pointers(written: Mapping[str, int], beneath: Mapping[str, int]) -> Node:
    """The stamps of a section that were stored as JSON pointers (RFC 6901), as they once were."""
    root: Node = [0, 0, {}]
    for place, stamps in ((_WRITTEN, written), (_BENEATH, beneath)):
        for pointer, stamp in stamps.items():
            node = root
            for part in pointer.split("/")[1:]:
                key = part.replace("~1", "/").replace("~0", "~")
                node = node[_NODES].setdefault(key, [0, 0, {}])
            node[place] = stamp
    _fold_all(root[_NODES])
    return root


def _fold_all(nodes: Json) -> None:
    for key, node in list(nodes.items()):
        _fold_all(node[_NODES])
        _fold(nodes, key)


__all__ = [
    "MAX_REMEMBERED",
    "MAX_REMEMBERED_BYTES",
    "NS_PER_S",
    "Json",
    "Section",
    "read_pointers",
]
