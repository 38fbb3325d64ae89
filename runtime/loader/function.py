"""A loaded function: everything that a binding needs to call it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from runtime.loader.docstring import read_summary
from runtime.manifest.model import FunctionSpec

Shape = Literal["event", "batch", "service", "schedule"]


@dataclass(frozen=True, slots=True)
class Function:
    """A checked, callable function.

    Attributes:
        handler: called as `handler(event_or_batch, ctx)`; a service or schedule as `handler(ctx)`.
        shape: `event` and `batch` for messages (an endpoint is always `event`).
        is_async: False means that the handler must run in a thread.
        decode: payload to the annotated type; raises PayloadError. None means raw bytes.
        encode: the result of an endpoint's handler to the bytes of its reply.
        request_schema: JSON Schema of the payload; None for raw bytes or a type without a schema.
        response_schema: JSON Schema of the reply; None likewise.
        start: the module's `start(ctx)`, sync or async; its result becomes `ctx.state`.
        stop: the module's `stop(ctx)`, sync or async.
        settings: the module's `Settings`, filled; None when it declares none.
        code_version: twelve hex digits that change when the source of the module, or of a project
            module that it imports, changes.
        hand_over: the module's `hand_over(old_state)`, sync or async: called by a reload after the
            new version's `start`, with the `ctx.state` of the version before. Its result, unless it
            is None, becomes the new version's `ctx.state`.
    """

    name: str
    spec: FunctionSpec
    handler: Callable[..., Any]
    shape: Shape
    is_async: bool
    decode: Callable[[bytes], Any] | None
    encode: Callable[[Any], bytes]
    request_schema: dict[str, Any] | None
    response_schema: dict[str, Any] | None
    start: Callable[..., Any] | None
    stop: Callable[..., Any] | None
    settings: Any
    code_version: str
    hand_over: Callable[..., Any] | None = None

    @property
    def description(self) -> str:
        """The manifest's description, or the summary of the handler's docstring."""
        return self.spec.description or read_summary(self.handler)
