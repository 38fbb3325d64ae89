"""The shadow document: what a patch may hold, and the delta, without I/O."""

from collections.abc import Mapping
from typing import Any

from functions.domain.values import same_json
from functions.shadow.section import Json

MAX_DEPTH = 8
MAX_KEY_CHARACTERS = 128
MAX_SECTION_BYTES = 32_768


class InvalidDocument(ValueError):  # noqa: N818 - what it is, not that it went wrong
    """The state breaks a rule of shadow documents; the text may be shown to a caller."""


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
