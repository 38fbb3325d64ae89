"""Draws the resolved entries of a manifest as YAML, with the origin of each value."""

from collections.abc import Iterator
from typing import Any

import yaml
from pydantic import BaseModel, SecretStr

from runtime.loader import Function
from runtime.manifest import Manifest
from runtime.manifest.idle_keys import IDLE_KEYS
from runtime.manifest.model import BINDINGS, StreamSpec
from runtime.manifest.positions import Path, Positions
from runtime.manifest.units import show_value
from runtime.observe.redaction import is_secret_name

_HIDDEN = "**********"
_ALIGNED = 40
"""The longest line whose comment is aligned with the others."""
_FIRST = {"handler", "subjects"}


def draw_resolved(
    manifest: Manifest, streams: dict[str, StreamSpec], functions: dict[str, Function]
) -> str:
    """YAML of the entries with all their values, a manifest in itself but for secrets.

    A comment says where a value comes from unless it stands in the entry itself: `default` for the
    host's own, the handler's docstring, or the line of the file's `defaults`, or of the keys that
    several triggers share. Keys without effect or value are left out.
    """
    lines: list[tuple[str, str]] = []
    if streams:
        lines.append(("streams:", ""))
        for name, spec in streams.items():
            lines += _draw_entry(manifest.positions, ("streams", name), spec, idle=frozenset())
    if functions:
        lines.append(("functions:", ""))
    for name, function in functions.items():
        path: Path = ("functions", name)
        lines += [
            *_draw_entry(manifest.positions, path, function.spec, idle=_idle_keys(function)),
            *_draw_docstring(function),
        ]
    short = [len(text) for text, origin in lines if origin and len(text) <= _ALIGNED]
    width = max(short, default=0)
    return "\n".join(f"{text:{width}}  # {origin}" if origin else text for text, origin in lines)


def _idle_keys(function: Function) -> frozenset[str]:
    spec = function.spec
    idle = next(IDLE_KEYS[key] for key in BINDINGS if getattr(spec, key))
    if function.shape != "batch":
        idle |= {"batch"}
    of_resources = {"postgres": "postgres_connections", "http": "http_client"}
    return idle | {key for resource, key in of_resources.items() if resource not in spec.uses}


def _draw_entry(
    positions: Positions, path: Path, spec: BaseModel, *, idle: frozenset[str]
) -> Iterator[tuple[str, str]]:
    indent = "  " * (len(path) - 1)
    yield f"{indent}{path[-1]}:", ""
    yield from _draw_model(positions, path, spec, idle=idle)


def _draw_model(
    positions: Positions, path: Path, spec: BaseModel, *, idle: frozenset[str] = frozenset()
) -> Iterator[tuple[str, str]]:
    fields = type(spec).model_fields
    for name in sorted(fields, key=lambda name: name not in _FIRST):
        field, value = fields[name], getattr(spec, name)
        if name in idle or value in (None, "", (), {}):
            continue
        inner = (*path, name)
        indent = "  " * len(path)
        if isinstance(value, BaseModel):
            yield f"{indent}{name}:", ""
            yield from _draw_model(positions, inner, value)
        elif isinstance(value, dict):
            yield f"{indent}{name}:", ""
            for key, item in _mask(value).items():
                at = (*inner, key)
                if isinstance(item, BaseModel):
                    yield from _draw_entry(positions, at, item, idle=frozenset())
                else:
                    yield f"{indent}  {_dump(key)}: {_dump(item)}", _origin(positions, at)
        else:
            yield f"{indent}{name}: {_dump(show_value(field, value))}", _origin(positions, inner)


def _draw_docstring(function: Function) -> Iterator[tuple[str, str]]:
    if function.description and not function.spec.description:
        yield f"    description: {_dump(function.description)}", "the docstring"


def _origin(positions: Positions, path: Path) -> str:
    if not positions.knows(*path):
        return "default"
    entry = positions.origin(*path[:2])
    is_own = positions.origin(*path)[: len(entry)] == entry
    return "" if is_own else positions.where(*path)


def _dump(value: Any) -> str:  # noqa: ANN401 - any value of YAML
    text = yaml.safe_dump(value, default_flow_style=True, width=1_000_000, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


def _mask(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, SecretStr):
        return _HIDDEN
    if isinstance(value, dict):
        return {
            key: _HIDDEN if isinstance(item, str) and is_secret_name(str(key)) else _mask(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_mask(item) for item in value]
    return value
