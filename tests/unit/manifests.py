"""Reads manifests from text, for tests of their checks."""

from collections.abc import Mapping
from pathlib import Path

from runtime.errors import ConfigError
from runtime.manifest import Manifest, read

NOTHING: Mapping[str, str] = {}


def read_text(text: str, environment: Mapping[str, str] = NOTHING) -> Manifest:
    """The manifest in `text`, as the file m.yaml of the current folder."""
    Path("m.yaml").write_text(text, encoding="utf-8")
    return read([Path("m.yaml")], environment)


def problems_of(text: str, environment: Mapping[str, str] = NOTHING) -> list[str]:
    """Every problem of the manifest in `text`, as a person sees them."""
    try:
        read_text(text, environment)
    except ConfigError as error:
        return [str(problem) for problem in error.problems]
    return []
