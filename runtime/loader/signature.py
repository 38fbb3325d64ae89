"""Checks a handler's signature against its binding in the manifest."""

import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, get_args, get_origin

from runtime.context import Context
from runtime.loader.function import Shape
from runtime.loader.module import LoadError
from runtime.manifest.model import FunctionSpec
from runtime.message import Batch, Event

_FORMS = {
    "consumer": "(event: Event[T], ctx: Context) or (batch: Batch[T], ctx: Context)",
    "endpoint": "(event: Event[T], ctx: Context)",
    "schedule": "(ctx: Context)",
    "service": "(ctx: Context)",
}


@dataclass(frozen=True, slots=True)
class Signature:
    """The types of a handler's payload and reply.

    Attributes:
        payload: the `T` of `Event[T]` or `Batch[T]`; None when the handler gets only the context.
        reply: the annotated return type; None without an annotation.
    """

    shape: Shape
    is_async: bool
    payload: Any
    reply: Any


def inspect_handler(handler: Any, spec: FunctionSpec) -> Signature:  # noqa: ANN401 - unchecked yet
    """Check a handler.

    Raises:
        LoadError: the handler cannot be called as its binding needs, or has no type to decode to.
    """
    binding = next(name for name in _FORMS if getattr(spec, name))
    if isinstance(handler, type) or not callable(handler):
        kind = "a class" if isinstance(handler, type) else f"of type {type(handler).__name__}"
        raise LoadError(f"the handler is {kind}, not a function", _show_form(binding))
    call: Callable[..., Any] = handler if inspect.isroutine(handler) else handler.__call__
    if inspect.isgeneratorfunction(call) or inspect.isasyncgenfunction(call):
        raise LoadError(
            "the handler yields, so calling it runs nothing", "return instead of yielding"
        )
    names = _check_parameters(handler, binding)
    hints = _resolve_hints(call)
    is_async = inspect.iscoroutinefunction(call)
    _check_context(names[-1], hints)
    reply = hints.get("return")
    if binding == "schedule":
        return Signature("schedule", is_async, None, reply)
    if binding == "service":
        if not is_async:
            raise LoadError(
                "a service must be async, to notice that it shall stop", "write async def"
            )
        return Signature("service", is_async, None, reply)
    shape, payload = _find_payload(names[0], hints, binding)
    return Signature(shape, is_async, payload, reply)


def _show_form(binding: str) -> str:
    article = "an" if binding == "endpoint" else "a"
    return f"{article} {binding} needs def handler{_FORMS[binding]}"


def _check_parameters(handler: Callable[..., Any], binding: str) -> list[str]:
    count = 1 if binding in {"schedule", "service"} else 2
    signature = inspect.signature(handler)
    try:
        bound = signature.bind(*[None] * count)
    except TypeError:
        raise LoadError(f"the handler takes {signature}", _show_form(binding)) from None
    names = list(bound.arguments)
    if len(names) < count:
        raise LoadError(f"the handler takes {signature}", _show_form(binding))
    return names


def _resolve_hints(call: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(call, include_extras=True)
    except NameError as error:
        raise LoadError(
            f"the annotation {error.name} is unknown when the module runs",
            "import it outside of `if TYPE_CHECKING:`",
        ) from None
    except Exception as error:
        raise LoadError(
            f"the annotations cannot be read: {type(error).__name__}: {error}", "correct them"
        ) from error


def _check_context(name: str, hints: dict[str, Any]) -> None:
    hint = hints.get(name, Context)
    if hint is not Context and get_origin(hint) is not Context:
        raise LoadError(
            f"parameter {name} is annotated {_show(hint)}", "annotate it Context or Context[State]"
        )


def _find_payload(name: str, hints: dict[str, Any], binding: str) -> tuple[Shape, Any]:
    if name not in hints:
        raise LoadError(
            f"parameter {name} has no annotation, which says how to decode the payload",
            f"annotate it Event[bytes] for raw bytes; {_show_form(binding)}",
        )
    hint = hints[name]
    kind = get_origin(hint) or hint
    if kind not in {Event, Batch}:
        raise LoadError(f"parameter {name} is annotated {_show(hint)}", _show_form(binding))
    if kind is Batch and binding == "endpoint":
        raise LoadError(
            "an endpoint answers one request at a time, not a Batch", _show_form(binding)
        )
    payload = get_args(hint)
    if not payload or isinstance(payload[0], TypeVar):
        raise LoadError(
            f"parameter {name} does not say what its {kind.__name__} holds",
            f"write {kind.__name__}[bytes] for raw bytes, or a model's name in the brackets",
        )
    return ("batch" if kind is Batch else "event"), payload[0]


def _show(hint: object) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint)
