"""Filter options of function lists: by name, by kind, and endpoints one by one or by service."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import wraps
from typing import Any, Literal, get_args

import click

from runtime.cli.parameters import FUNCTION_PATTERN
from runtime.manifest.model import FunctionSpec

Kind = Literal["consumer", "schedule", "endpoint", "service"]


@dataclass(frozen=True, slots=True)
class FunctionFilter:
    """The filter that the options describe.

    Attributes:
        pattern: pattern of names, with `*` and `?`; None for all.
        kind: kind of the functions; None for all.
        folds: whether the endpoints of one micro service are shown in one row.
    """

    pattern: str | None = None
    kind: Kind | None = None
    folds: bool = True

    def takes(self, function: str, kind: str, service: str) -> bool:
        """Whether a function is shown; an endpoint also matches by the name of its service."""
        if self.kind is not None and kind != self.kind:
            return False
        names = [function] + ([service] if kind == "endpoint" else [])
        return self.pattern is None or any(fnmatchcase(name, self.pattern) for name in names)


def function_filter(command: Callable[..., None]) -> Callable[..., None]:
    """Add the filter options to a command, which gets a `FunctionFilter` as `chosen`."""

    @click.option(
        "--function",
        "pattern",
        metavar="NAME",
        type=FUNCTION_PATTERN,
        help="Those of this name; may have * and ?. An endpoint also goes by its service's name.",
    )
    @click.option("--kind", type=click.Choice(get_args(Kind)), help="Those of this kind.")
    @click.option(
        "--endpoints", is_flag=True, help="Each endpoint in a row, and not in that of its service."
    )
    @wraps(command)
    def filtered(
        *args: Any,  # noqa: ANN401 - what click passes on
        pattern: str | None,
        kind: Kind | None,
        endpoints: bool,
        **options: Any,  # noqa: ANN401 - what click passes on
    ) -> None:
        folds = not endpoints and kind != "endpoint" and pattern is None
        command(*args, chosen=FunctionFilter(pattern, kind, folds), **options)

    return filtered


def kind_of(spec: FunctionSpec) -> Kind:
    """The kind of a function's binding."""
    if spec.consumer:
        return "consumer"
    if spec.schedule:
        return "schedule"
    return "endpoint" if spec.endpoint else "service"


def common_subject(subjects: Iterable[str]) -> str:
    """The common prefix of the subjects, as a subject with `>`."""
    parts = [subject.split(".") for subject in subjects]
    shared = []
    for tokens in zip(*parts, strict=False):
        if len(set(tokens)) > 1:
            break
        shared.append(tokens[0])
    return ".".join([*shared, ">"])
