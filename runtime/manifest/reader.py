"""Reads manifest files to one checked `Manifest`, or to all problems in them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from runtime.errors import ConfigError, Problem
from runtime.manifest.checks import find_conflicts
from runtime.manifest.document import UNRESOLVED, read_document
from runtime.manifest.model import (
    BINDINGS,
    FunctionSpec,
    Manifest,
    ModulePath,
    Name,
    StreamSpec,
    check_bindings,
)
from runtime.manifest.positions import Path as Place
from runtime.manifest.positions import Positions, dotted
from runtime.manifest.translation import show, suggest, translate

_SECTIONS: dict[str, Any] = {
    "streams": StreamSpec,
    "functions": FunctionSpec,
    "migrations": ModulePath,
}
_SUFFIXES = {".yaml", ".yml"}


@dataclass(slots=True)
class Reading:
    """The result of reading: the valid entries, and the problems.

    Attributes:
        manifest: all entries that are valid on their own; must not run while there are problems.
    """

    manifest: Manifest
    problems: list[Problem]


def read(paths: Sequence[Path], environment: Mapping[str, str]) -> Manifest:
    """Read and merge manifests.

    Args:
        paths: files, or folders of which every `*.yaml` and `*.yml` is read.
        environment: for `${NAME}` and `{from_env: NAME}`; the process's own environment is not
            used.

    Raises:
        ConfigError: lists every problem of every file.
    """
    reading = read_what_is_right(paths, environment)
    if reading.problems:
        raise ConfigError(reading.problems)
    return reading.manifest


def read_what_is_right(paths: Sequence[Path], environment: Mapping[str, str]) -> Reading:
    """Read manifests as far as possible, so that later checks can add their own problems."""
    merge = _Merge()
    files = _list_files(paths, merge.problems)
    for file in files:
        document = read_document(file, environment)
        merge.problems += document.problems
        if document.root is not UNRESOLVED:
            merge.add(document.root, document.places)
    return merge.finish()


def _list_files(paths: Sequence[Path], problems: list[Problem]) -> list[Path]:
    files: dict[Path, Path] = {}
    for path in paths:
        found = [path]
        if path.is_dir():
            found = sorted(inner for inner in path.iterdir() if inner.suffix in _SUFFIXES)
            if not found:
                problems.append(
                    Problem(str(path), "", "no *.yaml or *.yml file in it", "name another folder")
                )
        elif not path.exists():
            problems.append(
                Problem(str(path), "", "no such file or folder", "name a manifest or a folder")
            )
            continue
        for file in found:
            files.setdefault(file.resolve(), file)
    return list(files.values())


@dataclass(slots=True)
class _Merge:
    problems: list[Problem] = field(default_factory=list)
    _places: dict[Place, str] = field(default_factory=dict)
    _raw: dict[tuple[str, str], Any] = field(default_factory=dict)

    def add(self, root: object, places: Mapping[Place, str]) -> None:
        at = Positions(places)
        if not isinstance(root, dict):
            self._refuse(places[()], "", root)
            return
        for section, entries in root.items():
            if section not in _SECTIONS:
                remedy = suggest(section, _SECTIONS)
                self.problems.append(Problem(at.where(section), section, "no such key", remedy))
            elif not isinstance(entries, dict):
                if entries is not UNRESOLVED:
                    self._refuse(at.where(section), section, entries)
            else:
                for name, raw in entries.items():
                    self._add_entry(section, name, raw, places)

    def _refuse(self, where: str, place: str, value: object) -> None:
        remedy = "write `key: value` lines below it"
        if not place:
            remedy = f"begin with one of {', '.join(_SECTIONS)}"
        self.problems.append(Problem(where, place, f"{show(value)} is not a mapping", remedy))

    def _add_entry(self, section: str, name: str, raw: object, places: Mapping[Place, str]) -> None:
        key = (section, name)
        if key in self._raw:
            self.problems.append(
                Problem(
                    Positions(places).where(*key),
                    dotted(key),
                    f"the name is taken, first by {self._places[key]}",
                    "rename one of them or remove it",
                )
            )
            return
        self._raw[key] = raw
        self._places.update({place: where for place, where in places.items() if place[:2] == key})

    def finish(self) -> Reading:
        positions = Positions(self._places)
        good: dict[str, dict[str, Any]] = {section: {} for section in _SECTIONS}
        for (section, name), raw in self._raw.items():
            problems, entry = _check_entry(section, name, raw, positions)
            self.problems += problems
            if entry is not None:
                good[section][name] = entry
        manifest = Manifest.model_validate(good).placed_at(positions)
        broken = {name for section, name in self._raw if section == "streams"}
        self.problems += find_conflicts(manifest, unknown=broken - good["streams"].keys())
        return Reading(manifest, sorted(self.problems, key=_reading_order))


def _reading_order(problem: Problem) -> tuple[str, int]:
    file, _, line = problem.where.rpartition(":")
    return (file, int(line)) if line.isdecimal() else (problem.where, 0)


def _check_entry(
    section: str, name: str, raw: object, positions: Positions
) -> tuple[list[Problem], Any]:
    path = (section, name)
    problems: list[Problem] = []
    entry = None
    for kind, value in ((Name, name), (_SECTIONS[section], raw)):
        try:
            entry = TypeAdapter(kind).validate_python(value)
        except ValidationError as invalid:
            problems += translate(
                invalid.errors(), raw=value, kind=kind, path=path, positions=positions
            )
            entry = None
    if section == "functions" and isinstance(raw, dict):
        problems += _check_bindings(raw, problems, path, positions)
    return problems, None if problems else entry


def _check_bindings(
    raw: Mapping[str, object], problems: Sequence[Problem], path: Place, positions: Positions
) -> list[Problem]:
    # The model checks its fields together only when each is valid; this reports both at once.
    if not any(problem.field != dotted(path) for problem in problems):
        return []
    try:
        check_bindings(name for name in BINDINGS if raw.get(name) not in (None, False))
    except ValueError as error:
        wrong, _, remedy = str(error).partition("; ")
        return [Problem(positions.where(*path), dotted(path), wrong, remedy)]
    return []
