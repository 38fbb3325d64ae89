"""Finds the line of a manifest that an error or a difference of the server is about."""

from runtime.broker.drift import Change
from runtime.broker.stream_configs import Wanted
from runtime.errors import Problem
from runtime.manifest.model import Manifest
from runtime.manifest.positions import Path

_OF_FIELD = {"num_replicas": "replicas", "deliver_policy": "deliver"}
"""JetStream's names of fields that have another name in a manifest."""
_OF_ERROR = {10074: "replicas", 10005: "replicas", 10047: "max_bytes"}
"""The field that an error of JetStream is about. 10074: replicas on a server without a cluster,
10005: more replicas than the cluster has nodes, 10047: no room for `max_bytes`."""


def problem_of_change(manifest: Manifest, change: Change, wrong: str, remedy: str) -> Problem:
    """The problem that reports a difference between the server and the manifest."""
    kind, _, name = change.object.partition(" ")
    stream, _, consumer = name.partition("/")
    path = _find(manifest, stream, consumer if kind == "consumer" else "")
    return _place(manifest, path, change.field, wrong, remedy) or Problem(
        change.object, change.field, wrong, remedy
    )


def problem_of_error(
    manifest: Manifest, wanted: Wanted, err_code: int, wrong: str, remedy: str
) -> Problem:
    """The problem that reports an object that the server refused."""
    path = _find(manifest, wanted.stream, wanted.consumer)
    return _place(manifest, path, _OF_ERROR.get(err_code, ""), wrong, remedy) or Problem(
        wanted.name, "", wrong, remedy
    )


def is_declared(manifest: Manifest, wanted: Wanted) -> bool:
    """Whether a manifest's file declares the object; the host adds others of its own."""
    path = _find(manifest, wanted.stream, wanted.consumer)
    return bool(path) and manifest.positions.knows(*path)


def _find(manifest: Manifest, stream: str, consumer: str) -> Path:
    if not consumer:
        return ("streams", stream) if stream in manifest.streams else ()
    for name, function in manifest.functions.items():
        bound = function.consumer
        if bound and (bound.stream, bound.durable_of(name)) == (stream, consumer):
            return ("functions", name, "consumer")
    if stream in manifest.streams and consumer in manifest.streams[stream].consumers:
        return ("streams", stream, "consumers", consumer)
    return ()


def _place(manifest: Manifest, path: Path, field: str, wrong: str, remedy: str) -> Problem | None:
    if not path or not manifest.positions.knows(*path):
        return None
    if field:
        path = (*path, _OF_FIELD.get(field, field))
    return Problem(manifest.positions.where(*path), manifest.positions.field(*path), wrong, remedy)
