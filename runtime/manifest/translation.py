"""Translates pydantic's validation errors to problems for a manifest's author."""

import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic_core import ErrorDetails

from runtime.errors import Problem
from runtime.manifest import values
from runtime.manifest.document import UNRESOLVED
from runtime.manifest.positions import Path, Positions

_SHOWN_LENGTH = 60
_CLOSE = 0.6

_FORMS = {
    values.NAME_PATTERN: "use 1 to 64 letters, digits, - or _",
    values.MODULE_PATTERN: "write a module's dotted name, such as functions.domain.migrations",
    values.HANDLER_PATTERN: "write module:attribute, such as functions.ingest:ingest",
    values.SUBJECT_PATTERN: "write parts joined by dots, without spaces, such as telemetry.>",
    values.FIELD_PATTERN: "write names joined by dots, without spaces, such as customer.id",
    values.HTTP_PATH_PATTERN: "write a path such as /api/v1/devices/{device_id}",
    values.LINK_NAME_PATTERN: "use 1 to 11 letters, digits, blanks, - or _",
    values.LINK_URL_PATTERN: "write an address such as http://127.0.0.1:8080/docs",
    values.QUEUE_GROUP_PATTERN: "write it without spaces",
}
_KINDS = {
    "bool_type": ("true or false", "write true or false"),
    "dict_type": ("a mapping", "write `key: value` lines below it"),
    "float_type": ("a number", "write a number"),
    "int_type": ("a whole number", "write a whole number"),
    "model_type": ("a mapping", "write `key: value` lines below it"),
    "string_type": ("text", "put it in quotes, or write a name"),
    "tuple_type": ("a list", "write it in brackets: [a, b]"),
}
_SAME_KIND = {
    "bool_parsing": "bool_type",
    "float_parsing": "float_type",
    "int_from_float": "int_type",
    "int_parsing": "int_type",
}


def suggest(wrong: str, known: Iterable[str]) -> str:
    """A remedy for a mistyped name: the nearest known name, or all known names."""
    names = sorted(known)
    near = difflib.get_close_matches(wrong, names, n=1, cutoff=_CLOSE)
    if near:
        return f"did you mean {near[0]}?"
    return f"known are {', '.join(names)}" if names else "none is known here"


def translate(
    errors: Iterable[ErrorDetails],
    *,
    raw: object,
    kind: Any,  # noqa: ANN401 - a model class, or a plain type for the entries that are no models
    path: Path,
    positions: Positions,
) -> list[Problem]:
    """One problem per error.

    Args:
        errors: pydantic's errors.
        raw: the entry as in the file.
        kind: the entry's type.
        path: the entry's path in the manifest.
        positions: for `file:line`.
    """
    problems = []
    for error in errors:
        location = tuple(part for part in error["loc"] if part != "[key]")
        value = _value_at(raw, location)
        if _is_reported(error["type"], value):
            continue
        place = (*path, *location)
        wrong, remedy = _explain(error, value, kind, location)
        if error["type"] == "missing" and positions.knows(*place):
            # Only an optional secret is written and yet left out.
            wrong = "is an optional secret that is not set, and the model requires it"
            remedy = "give the field a default, such as None, or remove `optional`"
        problems.append(Problem(positions.where(*place), positions.field(*place), wrong, remedy))
    return problems


def holds_unresolved(value: object) -> bool:
    """Whether a part of the value could not be resolved, which is reported already."""
    if isinstance(value, Mapping):
        return any(map(holds_unresolved, value.values()))
    if isinstance(value, list | tuple):
        return any(map(holds_unresolved, value))
    return value is UNRESOLVED


def _is_reported(code: str, value: object) -> bool:
    """Whether an error is reported already, by the document or for each entry."""
    if code == "too_short" and value:
        return True
    return code not in {"missing", "extra_forbidden"} and holds_unresolved(value)


def _explain(error: ErrorDetails, value: object, kind: object, location: Path) -> tuple[str, str]:  # noqa: PLR0911 - a table of cases reads best as one
    code = error["type"]
    context = error.get("ctx", {})
    code = _SAME_KIND.get(code, code)
    if code == "extra_forbidden":
        return "no such key", suggest(str(location[-1]), _keys_at(kind, location[:-1]))
    if code == "missing":
        return "is missing", f"add `{location[-1]}:`"
    if code == "literal_error":
        return f"{show(value)} is not allowed", f"use {context['expected']}"
    if code in _KINDS:
        return _explain_kind(value, *_KINDS[code])
    if code == "string_pattern_mismatch":
        text = location[-1] if location and "[key]" in error["loc"] else value
        return f"{show(text)} does not fit", _FORMS.get(context["pattern"], "see the reference")
    if code == "value_error":
        wrong, _, remedy = str(context["error"]).partition("; ")
        return wrong, remedy or "see the reference"
    if code == "string_too_long":
        return "is too long", f"use at most {context['max_length']} characters"
    if code == "too_short":
        return "is empty", f"give at least {context['min_length']}"
    if bound := _explain_bound(code, context, value):
        return bound
    return error["msg"][0].lower() + error["msg"][1:], "see the reference"


def _explain_kind(value: object, wanted: str, remedy: str) -> tuple[str, str]:
    if isinstance(value, dict) and value.keys() & {"from_env", "from_file"}:
        return "a secret by reference cannot stand here", "use one under `settings:` only"
    return f"{show(value)} is not {wanted}", remedy


def _explain_bound(code: str, context: Mapping[str, Any], value: object) -> tuple[str, str] | None:
    bounds = {
        "greater_than_equal": ("ge", "too small", "at least"),
        "greater_than": ("gt", "too small", "more than"),
        "less_than_equal": ("le", "too big", "at most"),
        "less_than": ("lt", "too big", "less than"),
    }
    if code not in bounds:
        return None
    key, wrong, remedy = bounds[code]
    return f"{show(value)} is {wrong}", f"use {remedy} {context[key]:.15g}{_unit_of(value)}"


def _unit_of(value: object) -> str:
    if not isinstance(value, str):
        return ""
    try:
        values.parse_duration(value)
    except ValueError:
        return " bytes"
    return "s"


def show(value: object) -> str:
    """Format a value for a message: short, and never a secret."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, SecretStr):
        return "the value"
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= _SHOWN_LENGTH else f"{text[:_SHOWN_LENGTH]}…"


def _value_at(raw: object, location: Path) -> object:
    for part in location:
        try:
            raw = raw[part]  # type: ignore[index]
        except (KeyError, IndexError, TypeError):
            return None
    return raw


def _keys_at(kind: object, location: Path) -> list[str]:
    for part in location:
        kind = _inside(kind, part)
    found = _model_of(kind)
    return list(found.model_fields) if found else []


def _inside(kind: object, part: str | int) -> object:
    found = _model_of(kind)
    if found is not None:
        field = found.model_fields.get(str(part))
        return field.annotation if field else None
    for option in _options(kind):
        if get_origin(option) is dict:
            return get_args(option)[1]
        if get_origin(option) in {tuple, list}:
            return get_args(option)[0]
    return None


def _model_of(kind: object) -> type[BaseModel] | None:
    for option in _options(kind):
        if isinstance(option, type) and issubclass(option, BaseModel):
            return option
    return None


def _options(kind: object) -> list[object]:
    if get_origin(kind) is Annotated:
        return _options(get_args(kind)[0])
    if get_origin(kind) in {types.UnionType, typing.Union}:
        return [inner for option in get_args(kind) for inner in _options(option)]
    return [kind]
