"""The files of a new function: its module, its manifest and a test."""

import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from runtime.errors import ConfigError, Problem
from runtime.manifest import read_what_is_right
from runtime.manifest.document import read_document
from runtime.manifest.model import ScheduleBindingSpec
from runtime.manifest.positions import Positions
from runtime.scaffold.names import YAML_WORDS, check_function_name, check_route_type
from runtime.scaffold.writing import render, write_all

FunctionKind = Literal["consumer", "batch", "endpoint", "schedule", "service", "route"]

MANIFESTS = "manifests"
TEST_BEGINS_AT = datetime(2026, 1, 1, tzinfo=UTC)
"""When the test of a schedule begins, as its template says."""
_ROUTES = "ROUTES"
_SHIPPED_ROUTES = Path(__file__).parents[1] / "shipped_manifests" / "routes.yaml"
_SUFFIXES = {".yaml", ".yml"}
_EVERY = "1m"
_LINE_CHARACTERS = 100
_ROUTE_IMPORTS = """\
from functions.{name} import Destination, Settings, send
from functions.route_delivery import Job"""
_SUBJECT_WORDS = {"endpoint": "ask", "service": "alive"}


@dataclass(frozen=True, slots=True)
class _Stream:
    """A stream of a manifest: one of its subjects, and the file."""

    subject: str = ">"
    files: tuple[str, ...] = ()


_NOWHERE = _Stream()


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user asked of a new function; None where the default will do.

    Attributes:
        stream: a consumer's stream; by default the function's name in upper case.
        subject: an endpoint's subject, or the subject that a consumer takes from its stream.
        every: the interval of a schedule.
        cron: the cron expression of a schedule, instead of an interval.
    """

    stream: str | None = None
    subject: str | None = None
    every: str | None = None
    cron: str | None = None


def make_function(
    folder: Path,
    kind: FunctionKind,
    name: str,
    wishes: Wishes,
    *,
    environment: Mapping[str, str],
) -> list[str]:
    """Write `functions/NAME.py`, `manifests/NAME.yaml` and `tests/test_NAME.py`.

    Args:
        folder: the project's.
        kind: the template.
        name: the function's.
        wishes: what the user asked for.
        environment: the variables that the project's manifests may use.

    Raises:
        ConfigError: the name or a file is taken, or the entry conflicts with a manifest of the
            project; nothing is written.
    """
    check_function_name(name)
    if kind == "route":
        check_route_type(name)
    _check_folder(folder)
    functions, streams = _names_in(folder, environment)
    entry = f"deliver_{name}" if kind == "route" else name
    if entry in functions:
        wrong = f"there is a function {entry} already"
        raise ConfigError([Problem(functions[entry], "", wrong, "choose another name")])
    values = _values(kind, name, wishes, streams)
    files = {
        f"functions/{name}.py": render(kind, "function.py", values),
        f"{MANIFESTS}/{name}.yaml": render(kind, "manifest.yaml", values),
        f"tests/test_{name}.py": render(kind, "test.py", values),
    }
    known = _manifests(folder)
    if kind == "route" and _ROUTES not in streams:
        known.append(_SHIPPED_ROUTES)
    _check_manifest(known, f"{MANIFESTS}/{name}.yaml", files, environment)
    write_all(folder, files)
    return list(files)


def _check_folder(folder: Path) -> None:
    module = folder / "functions.py"
    if module.exists():
        wrong = "it hides the folder functions/, in which the new module would be"
        raise ConfigError([Problem(str(module), "", wrong, "give it another name")])


def _values(
    kind: FunctionKind, name: str, wishes: Wishes, streams: Mapping[str, _Stream]
) -> dict[str, str]:
    stream = wishes.stream or name.upper()
    subject = wishes.subject or f"{name}.>"
    declared = f'streams:\n  {_yaml(stream)}:\n    subjects: ["{subject}"]\n    max_age: 7d\n\n'
    narrows = stream in streams and wishes.subject is not None
    consumed = wishes.subject or (streams[stream].subject if stream in streams else subject)
    every = _yaml(wishes.every or _EVERY)
    return {
        "name": name,
        "stream": stream,
        "stream_key": _yaml(stream),
        "streams": "" if stream in streams else declared,
        "filter": f', filter_subjects: ["{subject}"]' if narrows else "",
        "manifests": _list([f"{MANIFESTS}/{name}.yaml", *streams.get(stream, _NOWHERE).files]),
        "imports": "\n".join(sorted(_ROUTE_IMPORTS.format(name=name).splitlines())),
        "sample": ".".join("any" if part in "*>" else part for part in consumed.split(".")),
        "subject": wishes.subject or f"{name}.{_SUBJECT_WORDS.get(kind, '')}",
        "trigger": f"cron: {_yaml(wishes.cron)}" if wishes.cron else f"every: {every}",
        "variable": f"{name.upper()}_URL",
        "due_in_s": str(_due_in_s(wishes)),
    }


def _list(names: list[str]) -> str:
    """A list as Python source, as the formatter would have it."""
    line = ", ".join(json.dumps(name) for name in names)
    if len(f"MANIFESTS = [{line}]") <= _LINE_CHARACTERS:
        return f"[{line}]"
    return "".join(["[\n", *(f"    {json.dumps(name)},\n" for name in names), "]"])


def _due_in_s(wishes: Wishes) -> int:
    """Seconds from the time at which the test begins to the first tick."""
    try:
        spec = ScheduleBindingSpec.model_validate(
            {"cron": wishes.cron} if wishes.cron else {"every": wishes.every or _EVERY}
        )
    except ValueError:
        return 0  # The check of the manifest says what is wrong.
    due_at = spec.trigger.next_after(TEST_BEGINS_AT)
    return int((due_at - TEST_BEGINS_AT).total_seconds()) if due_at else 0


def _yaml(text: str) -> str:
    """A string as YAML: plain where YAML reads it as a string, and in quotes elsewhere."""
    is_plain = re.fullmatch(r"[A-Za-z][\w-]*|\d+[dhms]", text, re.ASCII)
    return text if is_plain and text.lower() not in YAML_WORDS else json.dumps(text)


def _names_in(
    folder: Path, environment: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, _Stream]]:
    """What the project's manifests have, valid or not: functions with their places, and streams."""
    functions: dict[str, str] = {}
    streams: dict[str, _Stream] = {}
    for file in _manifests(folder):
        document = read_document(file, environment)
        if not isinstance(document.root, dict):
            continue
        at = Positions(document.places)
        for name in _mapping(document.root.get("functions")):
            functions[str(name)] = at.where("functions", name)
        for name, entry in _mapping(document.root.get("streams")).items():
            subjects = _mapping(entry).get("subjects")
            subject = str(subjects[0]) if isinstance(subjects, list) and subjects else ">"
            streams[str(name)] = _Stream(subject, (f"{MANIFESTS}/{file.name}",))
    return functions, streams


def _mapping(value: object) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}


def _manifests(folder: Path) -> list[Path]:
    manifests = folder / MANIFESTS
    if not manifests.is_dir():
        return []
    return sorted(each for each in manifests.iterdir() if each.suffix in _SUFFIXES)


def _check_manifest(
    known: list[Path], name: str, files: Mapping[str, str], environment: Mapping[str, str]
) -> None:
    """Refuse an entry that conflicts with another, such as a stream with the same subjects."""
    before = set(read_what_is_right(known, environment).problems)
    with tempfile.TemporaryDirectory() as place:
        draft = Path(place) / Path(name).name
        draft.write_text(files[name], encoding="utf-8")
        after = read_what_is_right([*known, draft], environment).problems
        new = [_renamed(each, str(draft), name) for each in after if each not in before]
    if new:
        raise ConfigError(new)


def _renamed(problem: Problem, draft: str, name: str) -> Problem:
    texts = (problem.where, problem.field, problem.wrong, problem.remedy)
    return Problem(*(text.replace(draft, name) for text in texts))
