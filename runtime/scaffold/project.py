"""The files of a new project: one function with its manifest and test, and how to run them."""

from pathlib import Path

from runtime.errors import ConfigError, Problem
from runtime.scaffold.function import Wishes, make_function
from runtime.scaffold.names import check_project_name
from runtime.scaffold.writing import render, write_all

FIRST = "greet"
"""The function of a new project."""
_FILES = {"pyproject.toml": "pyproject.toml", "Makefile": "Makefile", "README.md": "README.md"}


def make_project(parent: Path, name: str) -> list[str]:
    """Make the folder NAME with a project of one function; an empty folder NAME may exist.

    Raises:
        ConfigError: the name cannot be used, or the folder has files; nothing is written.
    """
    check_project_name(name)
    folder = parent / name
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()) or _has_files(folder):
        remedy = "choose another name, or `runtime new consumer` inside it"
        raise ConfigError([Problem(f"{folder}", "", "it exists already", remedy)])
    values = {"name": name, "function": FIRST}
    files = {file: render("project", template, values) for file, template in _FILES.items()}
    files[".gitignore"] = render("project", "gitignore", values)
    write_all(folder, files)
    return [*files, *make_function(folder, "consumer", FIRST, Wishes(), environment={})]


def _has_files(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())
