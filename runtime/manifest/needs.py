"""Finds functions that others need and that the manifests do not have. Pure."""

from runtime.manifest.model import Manifest


def find_missing(manifest: Manifest) -> dict[str, list[str]]:
    """By the name of each missing function, the functions that need it, in alphabetical order."""
    missing: dict[str, list[str]] = {}
    for name, spec in sorted(manifest.functions.items()):
        for needed in spec.needs:
            if needed not in manifest.functions:
                missing.setdefault(needed, []).append(name)
    return dict(sorted(missing.items()))


__all__ = ["find_missing"]
