"""Loads `module:attribute` of a manifest as a checked, typed callable."""

from runtime.errors import PayloadError
from runtime.loader.candidate import Again, Candidate
from runtime.loader.failure import LoadFailure
from runtime.loader.function import Function, Shape
from runtime.loader.loading import load, load_all
from runtime.loader.project import Project

__all__ = [
    "Again",
    "Candidate",
    "Function",
    "LoadFailure",
    "PayloadError",
    "Project",
    "Shape",
    "load",
    "load_all",
]
