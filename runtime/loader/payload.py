"""Payload codecs, built once for each function from the handler's annotations."""

from collections.abc import Callable
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic_core import ErrorDetails, to_json

from runtime.errors import PayloadError

_SHOWN_ERRORS = 5
_FIELD_LENGTH = 64
_REASON_LENGTH = 500


def build_decoder(annotation: Any, *, empty: bytes = b"") -> Callable[[bytes], Any] | None:  # noqa: ANN401
    """A function from a payload to a value of type `annotation`, or None for `bytes`.

    Args:
        annotation: any type that pydantic can validate from JSON.
        empty: JSON text to use for an empty payload, which otherwise fits no annotation.
    """
    if annotation is bytes:
        return None
    validate_json = TypeAdapter(annotation).validate_json

    def decode(data: bytes) -> Any:  # noqa: ANN401 - typed by the annotation
        try:
            return validate_json(data or empty)
        except ValidationError as misfit:
            raise PayloadError(_explain(misfit)) from None

    return decode


def encode(value: object) -> bytes:
    """The bytes of a reply: None is empty, bytes stay, other values become JSON (NaN: null)."""
    if value is None:
        return b""
    if isinstance(value, bytes):
        return value
    return to_json(value, inf_nan_mode="null")


def is_json(value: object) -> bool:
    """Whether `encode` makes JSON of the value."""
    return not (value is None or isinstance(value, bytes))


def draw_schema(annotation: Any, *, reply: bool = False) -> dict[str, Any] | None:  # noqa: ANN401
    """JSON Schema of an annotation; None for `bytes`, None and types without a schema."""
    if annotation is bytes or annotation is None or annotation is type(None):
        return None
    try:
        return TypeAdapter(annotation).json_schema(mode="serialization" if reply else "validation")
    except PydanticInvalidForJsonSchema:
        return None


def _explain(misfit: ValidationError) -> str:
    errors = misfit.errors(include_url=False, include_input=False, include_context=False)
    shown = [_explain_one(error) for error in errors[:_SHOWN_ERRORS]]
    if len(errors) > _SHOWN_ERRORS:
        shown.append(f"and {len(errors) - _SHOWN_ERRORS} more")
    return "; ".join(shown)[:_REASON_LENGTH]


def _explain_one(error: ErrorDetails) -> str:
    field = ".".join(str(part)[:_FIELD_LENGTH] for part in error["loc"])
    return f"{field}: {error['msg']}" if field else error["msg"]
