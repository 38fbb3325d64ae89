"""Checks the names of new functions and projects, before anything is written."""

import builtins
import keyword
import re
from pathlib import Path

from runtime.errors import ConfigError, Problem

LONGEST = 40
"""With a longer name, lines of a template would exceed 100 characters."""

LONGEST_ROUTE_TYPE = 32
"""The last token of its jobs' subject, and what the management API takes."""

_FUNCTION = re.compile(r"[a-z][a-z0-9_]*")
_PROJECT = re.compile(r"[a-z][a-z0-9_-]*")
_HOOKS = {"start", "stop", "hand_over"}
_IN_TEMPLATES = {"asyncio", "batch", "ctx", "event", "functions", "pytest", "runtime", "send"}
YAML_WORDS = {"false", "n", "no", "null", "off", "on", "true", "y", "yes"}
"""Words that YAML reads as other values than strings."""
_SHIPPED = Path(__file__).parents[2] / "functions"


def check_function_name(name: str) -> None:
    """Refuse a name that cannot be a module, a function and an entry of a manifest.

    Raises:
        ConfigError: says why, and which name would do.
    """
    if wrong := _wrong_with(name):
        _refuse(name, *wrong)
    if (_SHIPPED / name).is_dir() or (_SHIPPED / f"{name}.py").is_file():
        _refuse(name, f"functions.{name} is one of the shipped modules", "choose another name")


def check_route_type(name: str) -> None:
    """Refuse a name that is too long for a route type.

    Raises:
        ConfigError: says so.
    """
    if len(name) > LONGEST_ROUTE_TYPE:
        wrong = f"a route type's name has {LONGEST_ROUTE_TYPE} characters at most"
        _refuse(name, wrong, "choose a shorter name")


def check_project_name(name: str) -> None:
    """Refuse a name that cannot be a folder and the name of a Python project.

    Raises:
        ConfigError: says why, and which name would do.
    """
    if not _PROJECT.fullmatch(name) or len(name) > LONGEST:
        _refuse(
            name,
            "a project's name has lower-case letters, digits, - and _, begins with a letter and"
            f" has {LONGEST} characters at most",
            _suggest(name),
        )
    if name in ("runtime", "functions"):
        _refuse(name, "this is the name of a package of the runtime", f"write {name}-project")


def _wrong_with(name: str) -> tuple[str, str] | None:
    if not _FUNCTION.fullmatch(name) or len(name) > LONGEST:
        return (
            "a function's name has lower-case letters, digits and _, begins with a letter and has"
            f" {LONGEST} characters at most",
            _suggest(name),
        )
    taken = {
        "this is a keyword of Python": keyword.iskeyword(name) or keyword.issoftkeyword(name),
        "YAML does not read this word as a name": name in YAML_WORDS,
        "this is a name of Python's own": hasattr(builtins, name),
        "this is the name of a hook, which the host calls": name in _HOOKS,
        "the new module uses this name for something else": name in _IN_TEMPLATES,
    }
    wrong = next((sentence for sentence, is_so in taken.items() if is_so), None)
    return (wrong, f"write {name}_it or another name") if wrong else None


def _suggest(name: str) -> str:
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    fit = re.sub(r"[^a-z0-9]+", "_", words).strip("_0123456789")[:LONGEST].rstrip("_")
    return f"write {fit}" if fit and _wrong_with(fit) is None else "choose another name"


def _refuse(name: str, wrong: str, remedy: str) -> None:
    raise ConfigError([Problem(ascii(name), "", wrong, remedy)])
