"""Models of a manifest file as it is written: defaults, and functions with several triggers."""

from typing import Annotated

from pydantic import Field, StringConstraints

from runtime.manifest.model import FunctionDefaults, FunctionSpec, StreamSpec, TriggerSpec
from runtime.manifest.values import HANDLER_PATTERN, Model, ModulePath, Name


class TriggeredFunctionSpec(FunctionDefaults):
    """One handler with several triggers: a function for each, named FUNCTION_TRIGGER.

    All other keys are shared by the triggers, as the file's defaults are.
    """

    handler: Annotated[str, StringConstraints(pattern=HANDLER_PATTERN)]
    """As for a function with one binding."""
    triggers: Annotated[dict[Name, TriggerSpec], Field(min_length=1)]
    """By name: exactly one of `consumer`, `endpoint`, `schedule`, and keys of the function that
    differ."""
    description: Annotated[str, StringConstraints(max_length=1024)] = ""
    """For people. Without it: the first sentence of the handler's docstring."""


class ManifestFile(Model):
    """One manifest file."""

    defaults: FunctionDefaults = FunctionDefaults()
    """Values for the functions of this file that do not write their own."""
    streams: dict[Name, StreamSpec] = Field(default_factory=dict)
    """Streams, by name."""
    functions: dict[Name, FunctionSpec | TriggeredFunctionSpec] = Field(default_factory=dict)
    """Functions, by name."""
    migrations: dict[Name, ModulePath] = Field(default_factory=dict)
    """Packages of database migrations. The host applies them at start, in the order of their
    names."""
