"""Loads functions, and reports every problem that can be found before the first message."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, Protocol

from pydantic.errors import PydanticSchemaGenerationError, PydanticUndefinedAnnotation

from runtime.errors import ConfigError, Problem
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
from runtime.loader.sources import Sources
from runtime.manifest.model import FunctionSpec, Manifest
from runtime.manifest.positions import Positions


class Importer(Protocol):
    """Imports handlers' modules, and knows the versions of their code."""

    def import_module(self, name: str) -> ModuleType:
        """The module of this dotted name."""

    def version_of(self, name: str) -> str:
        """Twelve hex digits, see `Function.code_version`."""


class PlainImporter:
    """Imports modules by Python's own import.

    Attributes:
        sources: the sources of the modules that were imported, as they were just afterwards.
    """

    def __init__(self) -> None:
        self.sources = Sources()

    def import_module(self, name: str) -> ModuleType:
        """Import a module, or return it if it is imported already."""
        return importlib.import_module(name)

    def version_of(self, name: str) -> str:
        """The version of an imported module's code."""
        self.sources.add_handler(name)
        return self.sources.version(name)


NONE_LOADED: Mapping[str, Function] = MappingProxyType({})


def load_all(
    manifest: Manifest,
    importer: Importer | None = None,
    loaded: Mapping[str, Function] = NONE_LOADED,
) -> dict[str, Function]:
    """Load every function of a manifest.

    Modules are imported from the current folder and from installed packages. A user's folder
    `functions` is joined with the shipped one.

    Args:
        manifest: the functions.
        importer: imports the handlers' modules; Python's own import unless given.
        loaded: functions that this importer has loaded before.

    Raises:
        ConfigError: lists the problems of all functions.
    """
    problems = find_name_problems(manifest) or join_functions(handler_modules(manifest))
    if problems:
        raise ConfigError(problems)
    how = importer or PlainImporter()
    functions: dict[str, Function] = {}
    for name, spec in manifest.functions.items():
        try:
            functions[name] = load(
                name, spec, positions=manifest.positions, importer=how, loaded=loaded.get(name)
            )
        except ConfigError as error:
            problems += error.problems
    if problems:
        # The triggers of one handler share its mistakes.
        raise ConfigError(list(dict.fromkeys(problems)))
    return functions


def handler_modules(manifest: Manifest) -> dict[str, str]:
    """The modules that a manifest names, each with the file that names it."""
    asked = {("functions", name): spec.handler for name, spec in manifest.functions.items()}
    asked |= {("migrations", name): package for name, package in manifest.migrations.items()}
    return {
        target.partition(":")[0]: manifest.positions.where(*path).rpartition(":")[0]
        for path, target in asked.items()
    }


def find_name_problems(manifest: Manifest) -> list[Problem]:
    """Make the current folder's modules importable, and find those that hide others."""
    make_importable(Path.cwd())
    return find_collisions(Path.cwd(), handler_modules(manifest))


def load(
    name: str,
    spec: FunctionSpec,
    *,
    positions: Positions | None = None,
    importer: Importer | None = None,
    loaded: Function | None = None,
) -> Function:
    """Load one function.

    Args:
        name: the function's name in the manifest.
        spec: the function's entry in the manifest.
        positions: places in the manifest's files, for the problems.
        importer: imports the handler's module; Python's own import unless given.
        loaded: the function as this importer has loaded it before. Of an entry that has changed in
            its settings alone, these alone are read again.

    Raises:
        ConfigError: with every problem of the function. Its cause is a `LoadError` when the code,
            not the manifest, is wrong.
    """
    at = positions or Positions()
    make_importable(Path.cwd())
    try:
        if loaded is not None and _is_equal_but_settings(loaded.spec, spec):
            return _fill_again(loaded, spec, at, importer or PlainImporter())
        return _load(name, spec, at, importer or PlainImporter())
    except LoadError as misfit:
        path = ("functions", name, "handler")
        problem = Problem(at.where(*path), at.field(*path), misfit.wrong, misfit.remedy)
        raise ConfigError([problem]) from misfit


def _load(name: str, spec: FunctionSpec, positions: Positions, importer: Importer) -> Function:
    module_name, _, attribute = spec.handler.partition(":")
    module = import_module(module_name, importer.import_module)
    handler = find_attribute(module, attribute)
    try:
        signature = inspect_handler(handler, spec)
        decode, request_schema = _build_codec(signature, spec)
        response_schema = _draw_reply(signature) if spec.endpoint else None
    except LoadError as misfit:
        misfit.place = misfit.place or _place_of(handler)
        raise
    hooks = {hook: find_hook(module, hook) for hook in ("start", "stop", "hand_over")}
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
        response_schema=response_schema,
        settings=settings,
        code_version=importer.version_of(module_name),
        **hooks,
    )


def _is_equal_but_settings(one: FunctionSpec, other: FunctionSpec) -> bool:
    same_settings = one.model_copy(update={"settings": other.settings})
    return same_settings == other and one.model_fields_set == other.model_fields_set


def _fill_again(
    loaded: Function, spec: FunctionSpec, positions: Positions, importer: Importer
) -> Function:
    module = import_module(spec.handler.partition(":")[0], importer.import_module)
    path = ("functions", loaded.name, "settings")
    settings, problems = fill_settings(module, spec.settings, path=path, positions=positions)
    if problems:
        raise ConfigError(problems)
    return replace(loaded, spec=spec, settings=settings)


def _place_of(handler: Any) -> tuple[str, int] | None:  # noqa: ANN401 - a callable, or a mistake
    code = getattr(inspect.unwrap(handler), "__code__", None) if callable(handler) else None
    return (code.co_filename, code.co_firstlineno) if code else None


def _refuse_batch(name: str, positions: Positions) -> Problem:
    path = ("functions", name, "batch")
    return Problem(
        positions.where(*path),
        positions.field(*path),
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
