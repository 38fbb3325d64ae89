"""Manifests: streams and functions, read from YAML and checked."""

from runtime.manifest.model import Manifest
from runtime.manifest.reader import Reading, read, read_what_is_right

__all__ = ["Manifest", "Reading", "read", "read_what_is_right"]
