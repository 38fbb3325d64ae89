"""Parses one YAML file to plain values with line numbers, and collects all mistakes."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml
from yaml.constructor import ConstructorError, SafeConstructor
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from runtime.errors import Problem
from runtime.manifest.interpolation import (
    SECRET_KEYS,
    Absent,
    Unresolvable,
    interpolate,
    resolve_secret,
)
from runtime.manifest.positions import Path as Place
from runtime.manifest.positions import dotted

try:
    from runtime.manifest.libyaml import LibyamlLoader as _FastLoader
except ImportError:
    from yaml import SafeLoader as _FastLoader  # type: ignore[assignment]

_TAG = "tag:yaml.org,2002:"
_SCALARS = {_TAG + kind for kind in ("str", "int", "float", "bool", "null")}
_MAX_NODES = 100_000
"""The most nodes of a file: more come from nested aliases; a manifest has hundreds."""


class Unresolved:
    """Placeholder of a value that could not be resolved; its problem is reported already."""

    def __repr__(self) -> str:
        return "UNRESOLVED"


UNRESOLVED: Final = Unresolved()
_LEFT_OUT: Final = object()
"""In place of an optional secret that is not set: its key is left out."""


@dataclass(slots=True)
class Document:
    """The parsed content of a file.

    Attributes:
        root: the file's top value; UNRESOLVED when the file is not YAML.
        places: `file:line` of each entry, by its path.
    """

    root: Any = UNRESOLVED
    places: dict[Place, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def read_document(path: Path, environment: Mapping[str, str]) -> Document:
    """Read one file; mistakes in it are collected, not raised."""
    document = Document()
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        reason = f"cannot be read: {error.strerror}"
        document.problems.append(Problem(str(path), "", reason, "make it a readable file"))
        return document
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        document.problems.append(
            Problem(f"{path}:{line}", "", "not UTF-8 text", "save the file as UTF-8")
        )
        return document
    try:
        nodes = _compose(text)
    except yaml.YAMLError as error:
        document.problems.append(_explain_syntax(path, text, error))
        return document
    except RecursionError:
        document.problems.append(Problem(f"{path}:1", "", "nested too deeply", "flatten it"))
        return document
    if len(nodes) > 1:
        document.problems.append(
            Problem(
                f"{path}:{_line(nodes[1])}",
                "",
                "a second document begins",
                "keep one per file, without a --- between",
            )
        )
    if not nodes or nodes[0] is None:
        document.problems.append(
            Problem(f"{path}:1", "", "the file is empty", "declare something in it or remove it")
        )
        return document
    document.root = _Builder(path, environment, document).build(nodes[0], ())
    return document


def _compose(text: str) -> list[Node]:
    """The documents of a file.

    libyaml says less about a mistake than PyYAML's own parser, which parses what libyaml refuses.

    Raises:
        yaml.YAMLError: the text is not YAML.
        RecursionError: it is nested too deeply.
    """
    with suppress(yaml.YAMLError):
        return list(yaml.compose_all(text, Loader=_FastLoader))
    return list(yaml.compose_all(text, Loader=yaml.SafeLoader))


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1


def _explain_syntax(path: Path, text: str, error: yaml.YAMLError) -> Problem:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        where = f"{path}:{mark.line + 1}"
        if "'\\t'" in (error.problem or ""):
            return Problem(where, "", "a tab stands where YAML wants spaces", "indent with spaces")
        wrong = f"not YAML: {error.problem}"
        if error.context:
            wrong += f" ({error.context})"
        remedy = f"correct it near column {mark.column + 1}"
        if any("${" in line for line in text.splitlines()[mark.line : mark.line + 1]):
            remedy = "put ${…} in quotes where it stands inside [ ] or { }"
        return Problem(where, "", wrong, remedy)
    position = getattr(error, "position", 0)
    line = text.count("\n", 0, position) + 1
    return Problem(f"{path}:{line}", "", "a control character", "remove it")


class _Builder:
    def __init__(self, path: Path, environment: Mapping[str, str], document: Document) -> None:
        self._path = path
        self._environment = environment
        self._document = document
        self._constructor = SafeConstructor()
        self._resolver = yaml.SafeLoader("")
        self._open: set[int] = set()
        self._nodes = 0

    def build(self, node: Node, place: Place) -> Any:  # noqa: ANN401 - any YAML value
        self._document.places.setdefault(place, f"{self._path}:{_line(node)}")
        self._nodes += 1
        if id(node) in self._open or self._nodes > _MAX_NODES:
            return self._refuse(node, place, "an alias contains itself", "write the value out")
        self._open.add(id(node))
        try:
            if isinstance(node, ScalarNode):
                return self._build_scalar(node, place)
            if isinstance(node, SequenceNode) and node.tag == _TAG + "seq":
                items = [self.build(item, (*place, at)) for at, item in enumerate(node.value)]
                return [item for item in items if item is not _LEFT_OUT]
            if isinstance(node, MappingNode) and node.tag == _TAG + "map":
                return self._build_mapping(node, place)
            return self._refuse_tag(node, place)
        finally:
            self._open.discard(id(node))

    def _build_scalar(self, node: ScalarNode, place: Place) -> Any:  # noqa: ANN401
        try:
            text = interpolate(node.value, self._environment)
        except Unresolvable as reason:
            return self._refuse(node, place, reason.wrong, reason.remedy)
        tag = node.tag
        if not node.style and text != node.value:
            tag = self._resolver.resolve(ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
        if tag == _TAG + "timestamp":
            tag = _TAG + "str"
        if tag not in _SCALARS:
            return self._refuse_tag(node, place)
        try:
            return self._constructor.construct_object(ScalarNode(tag, text))
        except (ValueError, KeyError, ConstructorError):
            kind = tag.removeprefix(_TAG)
            return self._refuse(
                node, place, f"{node.value!r} cannot be read as {kind}", "remove the tag"
            )

    def _build_mapping(self, node: MappingNode, place: Place) -> Any:  # noqa: ANN401
        values: dict[str, Any] = {}
        lines: dict[str, int] = {}
        merged: list[Node] = []
        for key, value in node.value:
            if key.tag == _TAG + "merge":
                merged += value.value if isinstance(value, SequenceNode) else [value]
                continue
            if not isinstance(key, ScalarNode):
                self._refuse(key, place, "a list or mapping is used as a key", "write a plain name")
                continue
            name = key.value
            if name in lines:
                self._refuse(
                    key,
                    (*place, name),
                    f"the key stands twice, first in line {lines[name]}",
                    "keep one of them",
                )
                continue
            lines[name] = _line(key)
            self._document.places.setdefault((*place, name), f"{self._path}:{lines[name]}")
            if (built := self.build(value, (*place, name))) is not _LEFT_OUT:
                values[name] = built
        for other in merged:
            for name, value in self._merge(other, place):
                values.setdefault(name, value)
        if _may_hold_secret(place) and values.keys() & set(SECRET_KEYS):
            return self._resolve_secret(node, values, place)
        return values

    def _merge(self, node: Node, place: Place) -> Iterator[tuple[str, Any]]:
        if not isinstance(node, MappingNode):
            self._refuse(node, place, "<< merges something that is not a mapping", "name a mapping")
            return
        built = self.build(node, place)
        if isinstance(built, dict):
            yield from built.items()

    def _resolve_secret(self, node: Node, values: dict[str, Any], place: Place) -> Any:  # noqa: ANN401
        is_optional = values.pop("optional", False)
        key, target = next(iter(values.items()))
        if len(values) > 1:
            wrong = "a reference to a secret has more than one key"
            remedy = "write {from_env: NAME} or {from_file: PATH}, and perhaps optional: true"
            return self._refuse(node, place, wrong, remedy)
        if not isinstance(is_optional, bool):
            return self._refuse(node, place, "optional is not true or false", "write true or false")
        if target is UNRESOLVED:
            return UNRESOLVED
        if not isinstance(target, str) or not target:
            return self._refuse(node, place, f"{key} names nothing", f"write {{{key}: NAME}}")
        folder = self._path.parent
        try:
            secret = resolve_secret(key, target, environment=self._environment, folder=folder)
        except Unresolvable as reason:
            if is_optional and isinstance(reason, Absent):
                secret = None
            else:
                return self._refuse(node, place, reason.wrong, reason.remedy)
        return secret or _LEFT_OUT

    def _refuse_tag(self, node: Node, place: Place) -> Unresolved:
        return self._refuse(node, place, f"unknown tag {node.tag!r}", "remove the tag")

    def _refuse(self, node: Node, place: Place, wrong: str, remedy: str) -> Unresolved:
        where = f"{self._path}:{_line(node)}"
        self._document.problems.append(Problem(where, dotted(place), wrong, remedy))
        return UNRESOLVED


def _may_hold_secret(place: Place) -> bool:
    # The value of a setting: of the defaults, a function, or a trigger of a function.
    start = {"defaults": 1, "functions": 2}.get(str(place[0]), len(place)) if place else 0
    if place[start : start + 1] == ("triggers",):
        start += 2
    return place[start : start + 1] == ("settings",) and len(place) > start + 1
