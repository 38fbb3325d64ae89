"""Finds conflicts between endpoints: of their subjects, and of their HTTP paths."""

import re
from collections.abc import Iterator
from itertools import combinations

from runtime.manifest.model import EndpointBindingSpec, HttpSpec, Manifest
from runtime.manifest.positions import Path
from runtime.subjects import overlaps

_PARAMETER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")

Finding = tuple[Path, str, str]


def find_endpoint_conflicts(manifest: Manifest) -> Iterator[Finding]:
    """Find all conflicts, each with its place, what is wrong and the remedy."""
    endpoints = {
        name: function.endpoint
        for name, function in manifest.functions.items()
        if function.endpoint is not None
    }
    yield from _check_subjects(endpoints)
    yield from _check_streams(manifest, endpoints)
    exposed = {name: spec.http for name, spec in endpoints.items() if spec.http is not None}
    yield from _check_paths(exposed)


def _check_subjects(endpoints: dict[str, EndpointBindingSpec]) -> Iterator[Finding]:
    for (first, taken), (name, endpoint) in combinations(endpoints.items(), 2):
        if overlaps(taken.subject, endpoint.subject):
            yield (
                ("functions", name, "endpoint", "subject"),
                f"{endpoint.subject} overlaps {taken.subject} of function {first}",
                "give each endpoint its own subject: a request must reach one function only",
            )


def _check_streams(
    manifest: Manifest, endpoints: dict[str, EndpointBindingSpec]
) -> Iterator[Finding]:
    for name, endpoint in endpoints.items():
        for stream, spec in manifest.streams.items():
            for owned in spec.subjects:
                if overlaps(owned, endpoint.subject):
                    yield (
                        ("functions", name, "endpoint", "subject"),
                        f"stream {stream} stores {owned}, so that a caller on {endpoint.subject}"
                        " would get the stream's confirmation for an answer",
                        "use a subject that no stream stores",
                    )


def _check_paths(exposed: dict[str, HttpSpec]) -> Iterator[Finding]:
    seen: dict[tuple[str, str], str] = {}
    for name, http in exposed.items():
        path = ("functions", name, "endpoint", "http", "path")
        parameters = _PARAMETER.findall(http.path)
        if set("{}") & set(_PARAMETER.sub("", http.path)):
            yield path, f"{http.path!r} has unpaired braces", "write parameters as {device_id}"
        if len(set(parameters)) < len(parameters):
            yield path, f"{http.path!r} has a parameter twice", "give each its own name"
        key = (http.method, _PARAMETER.sub("{}", http.path))
        if key in seen:
            yield (
                path,
                f"{http.method} {http.path} is taken by function {seen[key]}",
                "use another method or path",
            )
        seen.setdefault(key, name)
