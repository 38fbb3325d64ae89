"""Completes the functions of one file by its `defaults`, and makes one function of each trigger."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError

from runtime.errors import Problem
from runtime.manifest.document import UNRESOLVED
from runtime.manifest.entries import TriggeredFunctionSpec
from runtime.manifest.idle_keys import IDLE_KEYS
from runtime.manifest.model import BINDINGS, FunctionDefaults, TriggerSpec
from runtime.manifest.positions import Path, Positions
from runtime.manifest.translation import show, suggest, translate

_COMPLETED: frozenset[Path] = frozenset(
    {("consumer",), ("endpoint",), ("endpoint", "http"), ("schedule",)}
)
"""Mappings that only complete what the function writes itself."""
_MERGED = _COMPLETED | {("batch",), ("retry",), ("settings",)}
"""Mappings that are merged key by key. A function's own value replaces every other one."""
_SHARED_KEYS = TriggeredFunctionSpec.model_fields.keys()
_TRIGGER_KEYS = TriggerSpec.model_fields.keys()


@dataclass(frozen=True, slots=True)
class ResolvedFunction:
    """A function's entry with what it has from elsewhere.

    Attributes:
        path: where the entry is written.
        entry: what the file has there, completed; not validated yet.
        origins: the path as written of each value that stands elsewhere.
    """

    name: str
    path: Path
    entry: Any
    origins: Mapping[Path, Path]


@dataclass(slots=True)
class FunctionResolver:
    """Resolves the functions of one file.

    Attributes:
        problems: the mistakes in `defaults` and in the form of `triggers`.
    """

    positions: Positions
    problems: list[Problem] = field(default_factory=list)
    _effective: set[Path] = field(default_factory=set)

    def resolve(self, root: Mapping[str, Any]) -> Iterator[ResolvedFunction]:
        """Resolve all functions of a file."""
        defaults = self._check_defaults(root.get("defaults", {}))
        functions = root.get("functions", {})
        if not isinstance(functions, dict):
            return
        for name, raw in functions.items():
            if isinstance(raw, dict) and "triggers" in raw:
                yield from self._resolve_triggers(name, raw, defaults)
            else:
                yield self._complete(name, raw, ("functions", name), [(("defaults",), defaults)])
        if all(isinstance(raw, dict) for raw in functions.values()):
            self._report_idle(("defaults",), defaults, "has no effect on any function of this file")

    def _check_defaults(self, raw: object) -> dict[str, Any]:
        """The defaults, with UNRESOLVED in place of each value that is not valid."""
        try:
            TypeAdapter(FunctionDefaults).validate_python(raw)
        except ValidationError as invalid:
            self.problems += translate(
                invalid.errors(),
                raw=raw,
                kind=FunctionDefaults,
                path=("defaults",),
                positions=self.positions,
            )
            for error in invalid.errors():
                raw = _without(raw, error["loc"], is_unknown=error["type"] == "extra_forbidden")
        return raw if isinstance(raw, dict) else {}

    def _resolve_triggers(
        self, name: str, raw: Mapping[str, Any], defaults: Mapping[str, Any]
    ) -> Iterator[ResolvedFunction]:
        path: Path = ("functions", name)
        triggers = raw["triggers"]
        shared = self._keep_known(raw, _SHARED_KEYS, path, "no such key beside `triggers:`")
        del shared["triggers"]
        if not isinstance(triggers, dict) or not triggers:
            if triggers is not UNRESOLVED:
                wrong = f"{show(triggers)} is not a mapping" if triggers else "is empty"
                remedy = "write a name for each trigger, and its binding below it"
                self._report((*path, "triggers"), wrong, remedy)
            return
        if "handler" not in shared:
            self._report((*path, "handler"), "is missing", "add `handler:`")
            return
        layers = [(path, shared), (("defaults",), defaults)]
        for trigger, own in triggers.items():
            at = (*path, "triggers", trigger)
            if isinstance(own, dict):
                known = self._keep_known(own, _TRIGGER_KEYS, at, "no such key in a trigger")
                yield self._complete(f"{name}_{trigger}", known, at, layers)
            else:
                wrong = f"{show(own)} is not a mapping"
                self._report(at, wrong, "write `key: value` lines below it")
        if all(isinstance(own, dict) for own in triggers.values()):
            self._report_idle(path, shared, "has no effect on any of the triggers")

    def _complete(
        self,
        name: str,
        raw: object,
        written: Path,
        layers: Iterable[tuple[Path, Mapping[str, Any]]],
    ) -> ResolvedFunction:
        at: Path = ("functions", name)
        origins: dict[Path, Path] = {} if at == written else {at: written}
        entry = raw
        if isinstance(raw, dict):
            entry = dict(raw)
            bound = [key for key in BINDINGS if entry.get(key) not in (None, False)]
            idle = IDLE_KEYS[bound[0]] if len(bound) == 1 else frozenset()
            for origin, values in layers:
                useful = {key: value for key, value in values.items() if key not in idle}
                for path, where in self._fill(entry, useful, (), origin):
                    origins[(*at, *path)] = where
        return ResolvedFunction(name, written, entry, origins)

    def _fill(
        self, entry: dict[str, Any], values: Mapping[str, Any], path: Path, origin: Path
    ) -> Iterator[tuple[Path, Path]]:
        """Add the values that are absent; yields the path of each in the entry, and as written."""
        for key, value in values.items():
            inner, where = (*path, key), (*origin, key)
            own = entry.get(key)
            if inner in _COMPLETED and not isinstance(own, dict):
                continue
            if inner == ("schedule", "timezone") and "every" in entry:
                continue
            self._effective.add(where)
            if key not in entry:
                entry[key] = value
                yield inner, where
            elif inner in _MERGED and isinstance(own, dict) and isinstance(value, dict):
                entry[key] = dict(own)
                yield from self._fill(entry[key], value, inner, where)

    def _report_idle(self, path: Path, values: Mapping[str, Any], wrong: str) -> None:
        for key, value in values.items():
            where = (*path, key)
            if where not in self._effective:
                self._report(where, wrong, "remove it")
            elif where[len(path) :] in _COMPLETED and isinstance(value, dict):
                self._report_idle(where, value, wrong)

    def _keep_known(
        self, raw: Mapping[str, Any], known: Iterable[str], path: Path, wrong: str
    ) -> dict[str, Any]:
        for key in raw:
            if key not in known:
                self._report((*path, key), wrong, suggest(key, known))
        return {key: value for key, value in raw.items() if key in known}

    def _report(self, path: Path, wrong: str, remedy: str) -> None:
        problem = Problem(self.positions.where(*path), self.positions.field(*path), wrong, remedy)
        self.problems.append(problem)


def _without(raw: Any, location: tuple[str | int, ...], *, is_unknown: bool) -> Any:  # noqa: ANN401 - a part of a file
    """A copy of the value without what is at the location."""
    if not location or not isinstance(raw, dict) or location[0] not in raw:
        return UNRESOLVED
    key, *rest = location
    copy = dict(raw)
    if is_unknown and not rest:
        del copy[str(key)]
    else:
        copy[str(key)] = _without(raw[str(key)], tuple(rest), is_unknown=is_unknown)
    return copy
