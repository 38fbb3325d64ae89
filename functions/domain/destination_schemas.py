"""Validates configurations of destinations by a JSON schema, and finds their secrets.

A schema is a type's own, announced by its deliverer, so nothing here knows a type. References lead
nowhere outside of the schema.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import orjson
from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import SchemaError, ValidationError, best_match
from referencing import Registry

from functions.domain.destination_annotations import (
    CHECKED_AS,
    CHECKS,
    FORMATS,
    GENERATED,
    PUBLIC_KEY,
    PUBLIC_KEYS,
)
from functions.domain.json_pointers import pointer_of

HIDDEN = "***"
MAX_SCHEMA_BYTES = 65_536
_MAX_DEPTH = 16
_MAX_REPORTED = 5
_SHOWN_CHARACTERS = 64
_WANTED_CHARACTERS = 120
_DEFS = "#/$defs/"
_CHECKER = FormatChecker(formats=())
for _name, _check in FORMATS.items():
    # The check's own sentence, since the library's would repeat the value.
    _CHECKER.checks(_name, raises=ValueError)(
        lambda value, check=_check: not isinstance(value, str) or check(value) is not None
    )

Path = tuple[str | int, ...]


def check_schema(schema: Mapping[str, Any]) -> None:
    """Check that a type may announce a schema.

    Raises:
        ValueError: says what is wrong, in one sentence.
    """
    if len(orjson.dumps(schema)) > MAX_SCHEMA_BYTES:
        raise ValueError(f"the JSON schema has more than {MAX_SCHEMA_BYTES} bytes")
    if any(not ref.startswith("#") for ref in _references(schema)):
        raise ValueError("the JSON schema refers to another document")
    if schema.get("type") != "object":
        raise ValueError("the JSON schema describes no object")
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError:
        raise ValueError("this is not a JSON schema") from None


class DestinationSchema:
    """The schema of one type's configurations.

    Args:
        schema: as announced; an object whose schema does not say whether it may have other keys may
            have none.
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self.properties: Mapping[str, Any] = schema.get("properties", {})
        self._schema = schema
        self._defs: Mapping[str, Any] = schema.get("$defs", {})
        closed = _closed(schema)
        self._stored = self._validator(closed)
        self._given = self._validator(_of_caller(closed))

    def find_problems(self, config: Mapping[str, Any], *, is_stored: bool = False) -> list[str]:
        """What is wrong in a configuration, at most five sentences; none repeats a value.

        Args:
            config: the configuration.
            is_stored: whether it is complete, with what the API writes.
        """
        if _is_deep(config, _MAX_DEPTH):
            return ["the configuration is nested too deeply"]
        validator = self._stored if is_stored else self._given
        found: list[str] = []
        for error in validator.iter_errors(config):
            found.append(_told(best_match([error]) or error))
            if len(found) == _MAX_REPORTED:
                break
        check = CHECKS.get(self._schema.get(CHECKED_AS, ""))
        if check is None or found:
            return found
        try:
            check(config)
        except ValueError as misfit:
            return [str(misfit)]
        return []

    def find_secrets(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The secrets of a configuration by their JSON pointers, those that are hidden excepted.

        A key of which the schema says nothing is a secret too.
        """
        found = self._walk(self._schema, config, (), 0)
        return {pointer_of(path): value for path, value in found}

    def with_public_keys(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The configuration, with the public keys of the signing keys that it has in clear."""
        found = dict(config)
        for name, field in self.properties.items():
            private = config.get(name)
            if PUBLIC_KEY in field and isinstance(private, str) and private != HIDDEN:
                found[field[PUBLIC_KEY]] = PUBLIC_KEYS[field[GENERATED]](private)
        return found

    def _walk(
        self,
        schema: Any,  # noqa: ANN401 - JSON
        value: Any,  # noqa: ANN401 - JSON
        path: Path,
        depth: int,
    ) -> Iterator[tuple[Path, Any]]:
        if value is None or value == HIDDEN:
            return
        branches = list(self._branches(schema, 0))
        if depth > _MAX_DEPTH or any(branch.get("writeOnly") is True for branch in branches):
            yield path, value
        elif isinstance(value, dict):
            for key, item in value.items():
                inner = [found for each in branches if (found := _of_key(each, key)) is not None]
                yield from self._walk({"anyOf": inner or [_SECRET]}, item, (*path, key), depth + 1)
        elif isinstance(value, list):
            for at, item in enumerate(value):
                inner = [found for each in branches if (found := _of_index(each, at)) is not None]
                yield from self._walk({"anyOf": inner or [_SECRET]}, item, (*path, at), depth + 1)

    def _branches(self, schema: Any, depth: int) -> Iterator[Mapping[str, Any]]:  # noqa: ANN401
        """The schemas that may apply to one value."""
        if not isinstance(schema, dict) or depth > _MAX_DEPTH:
            return
        yield schema
        reference = schema.get("$ref")
        if isinstance(reference, str) and reference.startswith(_DEFS):
            yield from self._branches(self._defs.get(reference.removeprefix(_DEFS)), depth + 1)
        for kind in ("anyOf", "oneOf", "allOf"):
            for inner in schema.get(kind, ()):
                yield from self._branches(inner, depth + 1)

    @staticmethod
    def _validator(schema: Mapping[str, Any]) -> Draft202012Validator:
        return Draft202012Validator(schema, registry=Registry(), format_checker=_CHECKER)


_SECRET = {"writeOnly": True}


def _of_key(schema: Mapping[str, Any], key: str) -> Any | None:  # noqa: ANN401 - JSON
    if key in schema.get("properties", {}):
        return schema["properties"][key]
    others = [schema.get("additionalProperties"), *schema.get("patternProperties", {}).values()]
    known = [each for each in others if isinstance(each, dict)]
    return {"anyOf": known} if known else None


def _of_index(schema: Mapping[str, Any], at: int) -> Any | None:  # noqa: ANN401 - JSON
    first = schema.get("prefixItems", [])
    return first[at] if at < len(first) else schema.get("items")


def _is_deep(value: object, left: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    items = value.values() if isinstance(value, dict) else value
    return not left or any(_is_deep(item, left - 1) for item in items)


def _closed(schema: Any) -> Any:  # noqa: ANN401 - JSON
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(item) for key, item in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        closed.setdefault("additionalProperties", False)
    return closed


def _of_caller(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of what a caller gives: what the API writes is absent, what it makes optional."""
    properties = {
        name: field
        for name, field in schema.get("properties", {}).items()
        if not (isinstance(field, dict) and field.get("readOnly"))
    }
    required = [
        name
        for name in schema.get("required", ())
        if name in properties and GENERATED not in properties[name]
    ]
    return {**schema, "properties": properties, "required": required}


def _references(schema: Any) -> Iterator[str]:  # noqa: ANN401 - JSON
    if isinstance(schema, list):
        for item in schema:
            yield from _references(item)
    elif isinstance(schema, dict):
        for key in ("$ref", "$dynamicRef", "$schema"):
            if isinstance(schema.get(key), str):
                yield schema[key]
        for item in schema.values():
            yield from _references(item)


def _told(error: ValidationError) -> str:
    place = ".".join(str(part)[:_SHOWN_CHARACTERS] for part in error.absolute_path)
    told = _sentence(error)
    return f"{place}: {told}" if place else told


def _sentence(error: ValidationError) -> str:
    rule, wanted = str(error.validator), error.validator_value
    if isinstance(error.cause, ValueError):
        return str(error.cause)
    explain = _EXPLAINED.get(rule)
    if explain is not None:
        return explain(error, wanted)
    known = _BOUNDS.get(rule)
    return f"{known} {str(wanted)[:_WANTED_CHARACTERS]}" if known else f"breaks the rule {rule}"


def _tell_missing(error: ValidationError, wanted: Any) -> str:  # noqa: ANN401 - JSON
    given: Any = error.instance
    return f"{_listed(name for name in wanted if name not in given)} is missing"


def _tell_unknown(error: ValidationError, _wanted: Any) -> str:  # noqa: ANN401 - JSON
    schema, given = error.schema, error.instance
    known = schema.get("properties", {}) if isinstance(schema, dict) else {}
    names = list(given) if isinstance(given, dict) else []
    return f"there is no {_listed(name for name in names if name not in known)}"


def _tell_type(_error: ValidationError, wanted: Any) -> str:  # noqa: ANN401 - JSON
    return f"must be of type {_listed([wanted] if isinstance(wanted, str) else wanted)}"


_EXPLAINED: Mapping[str, Callable[[ValidationError, Any], str]] = {
    "required": _tell_missing,
    "additionalProperties": _tell_unknown,
    "type": _tell_type,
    "enum": lambda _error, wanted: f"must be one of {_listed(wanted)}",
    "anyOf": lambda _error, _wanted: "has none of the forms that it may have",
    "oneOf": lambda _error, _wanted: "has none of the forms that it may have",
}
_BOUNDS = {
    "const": "must be",
    "maximum": "must be at most",
    "minimum": "must be at least",
    "exclusiveMaximum": "must be less than",
    "exclusiveMinimum": "must be more than",
    "maxLength": "may have characters up to",
    "minLength": "must have characters, at least",
    "maxItems": "may have items up to",
    "minItems": "must have items, at least",
    "maxProperties": "may have keys up to",
    "minProperties": "must have keys, at least",
    "pattern": "must match",
}


def _listed(names: Iterable[object]) -> str:
    return ", ".join(str(name)[:_SHOWN_CHARACTERS] for name in list(names)[:_MAX_REPORTED])


__all__ = ["HIDDEN", "MAX_SCHEMA_BYTES", "DestinationSchema", "check_schema"]
