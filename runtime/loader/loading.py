"""Loads functions, and reports every problem that can be found before the first message."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic.errors import PydanticSchemaGenerationError, PydanticUndefinedAnnotation

from runtime.errors import ConfigError, Problem
from runtime.loader.code_version import code_version
from runtime.loader.collisions import find_collisions, join_functions
from runtime.loader.function import Function
from runtime.loader.module import (
    LoadError,
    find_attribute,
    find_hook,
    import_module,
    make_importable,
)
from runtime.loader.options import fill_settings
from runtime.loader.payload import build_decoder, draw_schema, encode
from runtime.loader.signature import Signature, inspect_handler
from runtime.manifest.model import FunctionSpec, Manifest
from runtime.manifest.positions import Positions, dotted


def load_all(manifest: Manifest) -> dict[str, Function]:
    """Load every function of a manifest.

    Modules are imported from the current folder and from installed packages. A user's folder
    `functions` is joined with the shipped one.

    Raises:
        ConfigError: lists the problems of all functions.
    """
    _check_names(manifest)
    functions: dict[str, Function] = {}
    problems: list[Problem] = []
    for name, spec in manifest.functions.items():
        try:
            functions[name] = load(name, spec, positions=manifest.positions)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return functions


def _check_names(manifest: Manifest) -> None:
    asked = {("functions", name): spec.handler for name, spec in manifest.functions.items()}
    asked |= {("migrations", name): package for name, package in manifest.migrations.items()}
    modules = {
        target.partition(":")[0]: manifest.positions.where(*path).rpartition(":")[0]
        for path, target in asked.items()
    }
    make_importable(Path.cwd())
    problems = find_collisions(Path.cwd(), modules) or join_functions(modules)
    if problems:
        raise ConfigError(problems)


def load(name: str, spec: FunctionSpec, *, positions: Positions | None = None) -> Function:
    """Load one function.

    Args:
        name: the function's name in the manifest.
        spec: the function's entry in the manifest.
        positions: places in the manifest's files, for the problems.

    Raises:
        ConfigError: with every problem of the function.
    """
    at = positions or Positions()
    make_importable(Path.cwd())
    try:
        return _load(name, spec, at)
    except LoadError as misfit:
        path = ("functions", name, "handler")
        problem = Problem(at.where(*path), dotted(path), misfit.wrong, misfit.remedy)
        raise ConfigError([problem]) from misfit


def _load(name: str, spec: FunctionSpec, positions: Positions) -> Function:
    module_name, _, attribute = spec.handler.partition(":")
    module = import_module(module_name)
    handler = find_attribute(module, attribute)
    signature = inspect_handler(handler, spec)
    decode, request_schema = _build_codec(signature, spec)
    start, stop = find_hook(module, "start"), find_hook(module, "stop")
    path = ("functions", name, "settings")
    settings, problems = fill_settings(module, spec.settings, path=path, positions=positions)
    if signature.shape != "batch" and "batch" in spec.model_fields_set:
        problems.append(_refuse_batch(name, positions))
    if problems:
        raise ConfigError(problems)
    return Function(
        name=name,
        spec=spec,
        handler=handler,
        shape=signature.shape,
        is_async=signature.is_async,
        decode=decode,
        encode=encode,
        request_schema=request_schema,
        response_schema=_draw_reply(signature) if spec.endpoint else None,
        start=start,
        stop=stop,
        settings=settings,
        code_version=code_version(module),
        hand_over=find_hook(module, "hand_over"),
    )


def _refuse_batch(name: str, positions: Positions) -> Problem:
    path = ("functions", name, "batch")
    return Problem(
        positions.where(*path),
        dotted(path),
        "has no effect, as the handler takes one Event at a time",
        "remove it, or let the handler take a Batch",
    )


def _build_codec(
    signature: Signature, spec: FunctionSpec
) -> tuple[Callable[[bytes], Any] | None, dict[str, Any] | None]:
    if signature.shape in {"service", "schedule"}:
        return None, None
    try:
        schema = draw_schema(signature.payload)
        empty = b""
        if spec.endpoint:
            # A person asks an endpoint without arguments by `nats request SUBJECT ''`.
            empty = b"{}" if schema and schema.get("type") == "object" else b"null"
        return build_decoder(signature.payload, empty=empty), schema
    except (PydanticSchemaGenerationError, PydanticUndefinedAnnotation) as error:
        raise LoadError(
            f"{signature.payload} cannot be decoded from JSON",
            "use a pydantic model, a dataclass, a TypedDict, a plain type, or bytes for raw bytes",
        ) from error


def _draw_reply(signature: Signature) -> dict[str, Any] | None:
    try:
        return draw_schema(signature.reply, reply=True)
    except (PydanticSchemaGenerationError, PydanticUndefinedAnnotation) as error:
        raise LoadError(
            f"the return type {signature.reply} cannot be written as JSON",
            "return a pydantic model, a dict, a list, a plain type, bytes or None",
        ) from error
