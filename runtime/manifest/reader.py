"""Reads manifest files to one checked `Manifest`, or to all problems in them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from runtime.errors import ConfigError, Problem
from runtime.manifest.checks import find_conflicts
from runtime.manifest.document import UNRESOLVED, read_document
from runtime.manifest.entries import ManifestFile
from runtime.manifest.inheritance import FunctionResolver
from runtime.manifest.model import BINDINGS, FunctionSpec, Manifest, StreamSpec, check_bindings
from runtime.manifest.positions import Path as Place
from runtime.manifest.positions import Positions
from runtime.manifest.translation import show, suggest, translate
from runtime.manifest.values import ModulePath, Name

_SECTIONS: dict[str, Any] = {
    "streams": StreamSpec,
    "functions": FunctionSpec,
    "migrations": ModulePath,
}
_NAME = TypeAdapter[str](Name)
_ENTRIES: dict[str, TypeAdapter[Any]] = {
    section: TypeAdapter(kind) for section, kind in _SECTIONS.items()
}
_KEYS = ManifestFile.model_fields.keys()
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
    _origins: dict[Place, Place] = field(default_factory=dict)
    _raw: dict[tuple[str, str], Any] = field(default_factory=dict)

    def add(self, root: object, places: Mapping[Place, str]) -> None:
        at = Positions(places)
        if not isinstance(root, dict):
            self._refuse(places[()], "", root)
            return
        for section, entries in root.items():
            if section not in _KEYS:
                remedy = suggest(section, _KEYS)
                self.problems.append(Problem(at.where(section), section, "no such key", remedy))
            elif not isinstance(entries, dict) and entries is not UNRESOLVED:
                self._refuse(at.where(section), section, entries)
        self._add_entries(root, places)

    def _add_entries(self, root: Mapping[str, Any], places: Mapping[Place, str]) -> None:
        inside: dict[Place, list[Place]] = {}
        for place in places:
            for end in range(1, len(place) + 1):
                inside.setdefault(place[:end], []).append(place)
        resolver = FunctionResolver(Positions(places))
        entries = [
            *_list_plain_entries(root),
            *(
                (("functions", function.name), function.entry, function.origins)
                for function in resolver.resolve(root)
            ),
        ]
        self.problems += resolver.problems
        for key, raw, origins in entries:
            own = {place: places[place] for place in inside.get(key, ())}
            for at, written in origins.items():
                for place in inside.get(written, ()):
                    own[(*at, *place[len(written) :])] = places[place]
            self._add_entry(key, raw, own, origins)

    def _refuse(self, where: str, place: str, value: object) -> None:
        remedy = "write `key: value` lines below it"
        if not place:
            remedy = f"begin with one of {', '.join(_SECTIONS)}"
        self.problems.append(Problem(where, place, f"{show(value)} is not a mapping", remedy))

    def _add_entry(
        self,
        key: tuple[str, str],
        raw: object,
        places: Mapping[Place, str],
        origins: Mapping[Place, Place],
    ) -> None:
        if key in self._raw:
            at = Positions(places, origins)
            self.problems.append(
                Problem(
                    at.where(*key),
                    at.field(*key),
                    f"the name is taken, first by {self._places[key]}",
                    "rename one of them or remove it",
                )
            )
            return
        self._raw[key] = raw
        self._places.update(places)
        self._origins.update(origins)

    def finish(self) -> Reading:
        positions = Positions(self._places, self._origins)
        good: dict[str, dict[str, Any]] = {section: {} for section in _SECTIONS}
        for (section, name), raw in self._raw.items():
            problems, entry = _check_entry(section, name, raw, positions)
            self.problems += problems
            if entry is not None:
                good[section][name] = entry
        manifest = Manifest.model_validate(good).placed_at(positions)
        broken = {name for section, name in self._raw if section == "streams"}
        self.problems += find_conflicts(manifest, unknown=broken - good["streams"].keys())
        # Functions that share a wrong value all have the same problem.
        unique = dict.fromkeys(self.problems)
        return Reading(manifest, sorted(unique, key=_reading_order))


def _list_plain_entries(
    root: Mapping[str, Any],
) -> Iterator[tuple[tuple[str, str], Any, Mapping[Place, Place]]]:
    for section in ("streams", "migrations"):
        entries = root.get(section)
        if isinstance(entries, dict):
            for name, raw in entries.items():
                yield (section, name), raw, {}


def _reading_order(problem: Problem) -> tuple[str, int]:
    file, _, line = problem.where.rpartition(":")
    return (file, int(line)) if line.isdecimal() else (problem.where, 0)


def _check_entry(
    section: str, name: str, raw: object, positions: Positions
) -> tuple[list[Problem], Any]:
    path = (section, name)
    problems: list[Problem] = []
    entry = None
    for kind, adapter, value in (
        (Name, _NAME, name),
        (_SECTIONS[section], _ENTRIES[section], raw),
    ):
        try:
            entry = adapter.validate_python(value)
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
    place = positions.field(*path)
    if not any(problem.field != place for problem in problems):
        return []
    try:
        check_bindings(name for name in BINDINGS if raw.get(name) not in (None, False))
    except ValueError as error:
        wrong, _, remedy = str(error).partition("; ")
        return [Problem(positions.where(*path), place, wrong, remedy)]
    return []
