"""Reads the manifest of a test, and keeps the functions that the test wants."""

import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from runtime.errors import ConfigError, Problem
from runtime.manifest import Manifest
from runtime.manifest.reader import read_what_is_right
from runtime.manifest.translation import suggest

Source = str | Path | Mapping[str, Any] | Manifest
"""A manifest's file or folder, its content, or the manifest itself."""


def read_sources(
    sources: Iterable[Source],
    environment: Mapping[str, str] | None,
    only: Collection[str] = (),
) -> Manifest:
    """Read and merge the manifests.

    Args:
        sources: the manifests.
        environment: for `${NAME}`; the process's own if None.
        only: the functions that run, all if empty. Mistakes of the others are left alone, such as a
            secret that is not set.

    Raises:
        ConfigError: lists every problem.
    """
    paths: list[Path] = []
    manifest = Manifest()
    for source in sources:
        if isinstance(source, str | Path):
            paths.append(Path(source))
        else:
            found = source if isinstance(source, Manifest) else Manifest.model_validate(source)
            manifest = _merged(manifest, found)
    if paths:
        given = os.environ if environment is None else environment
        reading = read_what_is_right(paths, given)
        problems = [each for each in reading.problems if _concerns(each, only)]
        if problems:
            raise ConfigError(problems)
        of_files = reading.manifest
        manifest = _merged(manifest, of_files).placed_at(of_files.positions)
    return manifest


def select(manifest: Manifest, only: Collection[str], *, services: bool) -> Manifest:
    """The manifest with the wanted functions alone.

    Args:
        manifest: all functions.
        only: names of functions; all functions if empty.
        services: whether functions that are services run, which may open ports.

    Raises:
        ConfigError: there is no function of a name.
    """
    known = manifest.functions
    problems = [
        Problem("only", name, "no manifest has this function", suggest(name, list(known)))
        for name in only
        if name not in known
    ]
    if problems:
        raise ConfigError(problems)
    kept = {
        name: spec
        for name, spec in known.items()
        if (not only or name in only) and (services or not spec.service)
    }
    return manifest.model_copy(update={"functions": kept}).placed_at(manifest.positions)


def check_postgres(manifest: Manifest, database_url: str | None) -> None:
    """Refuse functions that use PostgreSQL without an address.

    Raises:
        ConfigError: names the functions.
    """
    if database_url is not None:
        return
    problems = [
        Problem(
            f"function {name}",
            "uses",
            "uses postgres, and this test gave no database",
            "give database_url; the pytest fixture embedded_postgres has one",
        )
        for name, spec in manifest.functions.items()
        if "postgres" in spec.uses
    ]
    if problems:
        raise ConfigError(problems)


def _concerns(problem: Problem, only: Collection[str]) -> bool:
    section, _, path = problem.field.partition(".")
    return section != "functions" or not only or path.partition(".")[0] in only


def _merged(one: Manifest, other: Manifest) -> Manifest:
    return Manifest(
        streams={**one.streams, **other.streams},
        functions={**one.functions, **other.functions},
        migrations={**one.migrations, **other.migrations},
    )
