"""The shadow document: merging, late messages, delta and metadata, without I/O.

A section (`desired` or `reported`) is a JSON object. Every write carries a stamp: nanoseconds since
1970; a later update has the greater stamp. Merging follows AWS IoT: objects merge, `null` deletes,
arrays and scalars are replaced whole. Messages may arrive in another order than they were stored,
so each path keeps the stamp of its last write: *any* order of the same updates gives the same
section, and the same update twice changes nothing.

Two rules make that possible: an object without a leaf is not kept, and a deletion beneath a scalar
keeps the scalar.
Source: AWS IoT developer guide, "Device Shadow service documents".
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from functions.domain.values import same_json

Path = tuple[str, ...]
Json = dict[str, Any]

NS_PER_S = 1_000_000_000
MAX_DEPTH = 8
MAX_KEY_CHARACTERS = 128
MAX_SECTION_BYTES = 32_768
# Bound on the stamps kept of deleted paths; the newest are kept. Without it, a device that sends a
# new key in every message would grow its row without bound. A dropped stamp can only let a very
# late message restore a key.
MAX_REMEMBERED = 512


class InvalidDocument(ValueError):  # noqa: N818 - what it is, not that it went wrong
    """The state breaks a rule of shadow documents; the text may be shown to a caller."""


@dataclass(slots=True)
class Section:
    """One section's leaves, and the stamps that let late updates be merged correctly.

    Attributes:
        leaves: values by path; never None, never a non-empty object.
        written: stamp of the newest write or deletion of exactly this path, present or deleted.
        beneath: stamp of the newest value written beneath this path.
    """

    leaves: dict[Path, Any] = field(default_factory=dict)
    written: dict[Path, int] = field(default_factory=dict)
    beneath: dict[Path, int] = field(default_factory=dict)

    def merge(self, patch: object, stamp: int) -> None:
        """Apply an update made at `stamp`, in any order of stamps.

        A patch of None deletes the whole section.
        """
        # Built once for each update: to search all leaves for each value takes quadratic time.
        below: dict[Path, set[Path]] = {}
        for leaf in self.leaves:
            _add_leaf(below, leaf)
        for path, value in flatten(patch):
            self._write(path, value, stamp, below)
        self._forget()

    def state(self) -> Json:
        """The section as a nested object, as devices and callers see it."""
        return _nest(self.leaves)

    def metadata(self) -> Json:
        """The section's shape with `{"timestamp": seconds}` in place of each leaf."""
        return _nest({path: self._timestamp(path) for path in self.leaves})

    def _timestamp(self, path: Path) -> Json:
        return {"timestamp": self.written[path] // NS_PER_S}

    def _write(self, path: Path, value: object, stamp: int, below: dict[Path, set[Path]]) -> None:
        prefixes = [path[:depth] for depth in range(len(path))]
        if value is not None:
            for prefix in prefixes:
                self.beneath[prefix] = max(self.beneath.get(prefix, 0), stamp)
                if prefix in self.leaves and self.written[prefix] < stamp:
                    self._drop(prefix, below)
        if any(self.written.get(place, 0) > stamp for place in (*prefixes, path)):
            return
        self.written[path] = stamp
        for leaf in list(below.get(path, ())):
            if self.written[leaf] < stamp or leaf == path:
                self._drop(leaf, below)
        if value is not None and self.beneath.get(path, 0) <= stamp:
            self.leaves[path] = value
            _add_leaf(below, path)

    def _drop(self, leaf: Path, below: dict[Path, set[Path]]) -> None:
        del self.leaves[leaf]
        for depth in range(len(leaf) + 1):
            below[leaf[:depth]].discard(leaf)

    def _forget(self) -> None:
        gone = [path for path in self.written if path not in self.leaves]
        # A newer write of an enclosing object makes this stamp useless.
        useless = [path for path in gone if self._is_covered(path, self.written[path])]
        kept = sorted(set(gone).difference(useless), key=lambda path: -self.written[path])
        for path in [*useless, *kept[MAX_REMEMBERED:]]:
            del self.written[path]
        stale = [
            path
            for path, stamp in self.beneath.items()
            if self.written.get(path, 0) >= stamp or self._is_covered(path, stamp)
        ]
        for path in stale:
            del self.beneath[path]
        extra = sorted(self.beneath, key=lambda path: -self.beneath[path])[2 * MAX_REMEMBERED :]
        for path in extra:
            del self.beneath[path]

    def _is_covered(self, path: Path, stamp: int) -> bool:
        return any(self.written.get(path[:depth], 0) > stamp for depth in range(len(path)))


def _add_leaf(below: dict[Path, set[Path]], leaf: Path) -> None:
    """Add a leaf to the leaves at or beneath each of its paths."""
    for depth in range(len(leaf) + 1):
        below.setdefault(leaf[:depth], set()).add(leaf)


def flatten(patch: object, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Each leaf or deletion (None) of a patch with its path; an empty object yields nothing."""
    if isinstance(patch, dict):
        for key, value in patch.items():
            yield from flatten(value, (*path, key))
    else:
        yield path, patch


def delta(desired: Mapping[str, Any], reported: Mapping[str, Any]) -> Json:
    """The desired values that `reported` lacks or has with another value.

    A value that only `reported` holds is not part of the delta; an array that differs is given
    whole.
    """
    different: Json = {}
    for key, wanted in desired.items():
        actual = reported.get(key)
        if isinstance(wanted, dict):
            below = delta(wanted, actual if isinstance(actual, dict) else {})
            if below:
                different[key] = below
        elif key not in reported or not same_json(wanted, actual):
            different[key] = wanted
    return different


def pick(metadata: Mapping[str, Any], shape: Mapping[str, Any]) -> Json:
    """The part of `metadata` that belongs to the leaves of `shape`."""
    return {
        key: pick(metadata[key], value) if isinstance(value, dict) else metadata[key]
        for key, value in shape.items()
    }


def check_patch(patch: object) -> None:
    """Refuse a patch that no section can hold.

    Raises:
        InvalidDocument: not an object or null, too deep, a key of bad length, a null inside an
            array, or a NUL character, which PostgreSQL's jsonb cannot store.
    """
    if patch is None:
        return
    if not isinstance(patch, dict):
        raise InvalidDocument("a section must be an object or null")
    _check(patch, depth=1, in_array=False)


def _check(value: object, *, depth: int, in_array: bool) -> None:
    if value is None and in_array:
        raise InvalidDocument("an array may not hold null")
    if isinstance(value, str) and "\x00" in value:
        raise InvalidDocument("a text may not hold the NUL character")
    if not isinstance(value, dict | list):
        return
    if depth > MAX_DEPTH:
        raise InvalidDocument(f"deeper than {MAX_DEPTH} levels")
    if isinstance(value, dict):
        for key in value:
            _check_key(key)
    children = value.values() if isinstance(value, dict) else value
    inside = in_array or isinstance(value, list)
    for child in children:
        _check(child, depth=depth + 1, in_array=inside)


def _check_key(key: str) -> None:
    if not 1 <= len(key) <= MAX_KEY_CHARACTERS or "\x00" in key:
        raise InvalidDocument(f"a key must have 1 to {MAX_KEY_CHARACTERS} characters and no NUL")


def _nest(leaves: Mapping[Path, Any]) -> Json:
    nested: Json = {}
    for path, value in leaves.items():
        place = nested
        for key in path[:-1]:
            place = place.setdefault(key, {})
        place[path[-1]] = value
    return nested
