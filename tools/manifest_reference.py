"""Writes the tables of docs/manifest.md from the models: `python -m tools.manifest_reference`.

A table stands between `<!-- keys: Model, Model -->` and `<!-- end -->`. Everything else on the page
is written by hand.
"""

import re
import sys
import types
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, BeforeValidator, StringConstraints
from pydantic.fields import FieldInfo

from runtime.manifest import entries, model, values
from runtime.manifest.field_texts import read_field_texts
from runtime.manifest.rate import parse_rate
from runtime.manifest.units import show_value

PAGE = Path(__file__).parents[1] / "docs" / "manifest.md"
_TABLE = re.compile(r"(<!-- keys: ([\w, ]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_KINDS: dict[object, str] = {
    values.parse_duration: "duration",
    values.parse_size: "size",
    parse_rate: "rate",
}
_FORMS = {
    values.NAME_PATTERN: "name",
    values.SUBJECT_PATTERN: "subject",
    values.HANDLER_PATTERN: "`module:attribute`",
    values.MODULE_PATTERN: "module",
    values.HTTP_PATH_PATTERN: "path",
    values.FIELD_PATTERN: "names with dots",
    values.LINK_URL_PATTERN: "address",
}


def fill(page: str) -> str:
    """The page with its tables as the models are now."""
    return _TABLE.sub(lambda found: found[1] + _draw(found[2].split(", ")) + found[3], page)


def _draw(names: Iterable[str]) -> str:
    texts = read_field_texts()
    lines = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for name in names:
        kind: type[BaseModel] = getattr(model, name, None) or getattr(entries, name)
        fields = kind.model_fields
        for key in sorted(fields, key=lambda key: not fields[key].is_required()):
            field = fields[key]
            value = _name_kind(field.annotation, field.metadata)
            lines.append(f"| `{key}` | {value} | {_default(field)} | {texts[name][key]} |")
    return "\n".join(lines) + "\n"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "see below"
    if value in (None, (), {}, ""):
        return ""
    shown = show_value(field, value)
    return f"`{str(shown).lower() if isinstance(shown, bool) else shown}`"


def _name_kind(annotation: Any, metadata: Iterable[Any] = ()) -> str:  # noqa: ANN401
    known = list(_flatten(metadata))
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _name_kind(arguments[0], [*arguments[1:], *known])
    if origin in {types.UnionType, typing.Union}:
        kinds = [_name_kind(one, known) for one in arguments if one is not types.NoneType]
        return " or ".join(dict.fromkeys(kinds))
    if origin is Literal:
        return ", ".join(f"`{str(one).lower() if one is True else one}`" for one in arguments)
    if origin is tuple:
        inner = _name_kind(arguments[0])
        return f"list of {inner}s" if inner.isalpha() else f"list of {inner}"
    if origin is dict or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return "mapping"
    return _name_scalar(annotation, known)


def _name_scalar(annotation: Any, metadata: list[Any]) -> str:  # noqa: ANN401
    parsers = [_KINDS.get(item.func) for item in metadata if isinstance(item, BeforeValidator)]
    forms = [
        _FORMS.get(item.pattern, "text")
        for item in metadata
        if isinstance(item, StringConstraints) and isinstance(item.pattern, str)
    ]
    if annotation is bool:
        return "`true`, `false`"
    found = next((kind for kind in parsers if kind), "")
    if found:
        return found + _bounds(metadata, as_duration=found == "duration")
    if annotation is str:
        return next(iter(forms), "text")
    return "number" + _bounds(metadata, as_duration=False)


def _bounds(metadata: Iterable[Any], *, as_duration: bool) -> str:
    least, most = "", ""
    for item in metadata:
        if isinstance(item, Ge) and item.ge not in {0, -1}:
            least = _show(item.ge, as_duration=as_duration)
        elif isinstance(item, Le):
            most = _show(item.le, as_duration=as_duration)
    if least and most:
        return f", {least} to {most}"
    return f", at least {least}" if least else f", at most {most}" if most else ""


def _show(bound: Any, *, as_duration: bool) -> str:  # noqa: ANN401
    like = model.FunctionSpec.model_fields["timeout" if as_duration else "concurrency"]
    return str(show_value(like, float(bound) if as_duration else bound))


def _flatten(metadata: Iterable[Any]) -> Iterator[Any]:
    for item in metadata:
        if isinstance(item, FieldInfo):
            yield from item.metadata
        elif not isinstance(item, Gt | Lt):
            yield item


if __name__ == "__main__":
    old = PAGE.read_text("utf-8")
    new = fill(old)
    PAGE.write_text(new, encoding="utf-8")
    sys.stdout.write("docs/manifest.md: " + ("unchanged\n" if old == new else "written\n"))
