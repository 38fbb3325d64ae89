"""Transformations: what a route sends in place of a message's payload, by paths and CEL.

A path such as `payload.metrics.temp` is looked up, and any other text is a CEL expression with the
bounds of `functions.domain.expressions`. The bounds hold for all expressions of a transformation
together, so a transformation costs at most as much as a payload filter.
"""

import json
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from functions.domain.evaluation.evaluator import Evaluator
from functions.domain.evaluation.values import UNDECIDED, Answer, Ask, Outcome, Step
from functions.domain.expressions import (
    MAX_LENGTH,
    SAMPLE,
    check_expression,
    check_loops,
    evaluate_sample,
)

MAX_FIELDS = 64
MAX_RESULT_BYTES = 65_536
_WHAT = "a transformation"
_PATH = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}(?:\.[A-Za-z_][A-Za-z0-9_]{0,127}){0,15}")
_LITERALS = frozenset({"true", "false", "null"})
_VARIABLES: Mapping[str, Any] = MappingProxyType(
    {**SAMPLE, "stored_at": "2026-08-01T12:00:00.123456Z", "job_id": "TELEMETRY-17-1-r"}
)

FieldName = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[^\x00]+$")]
Formula = Annotated[str, StringConstraints(min_length=1, max_length=MAX_LENGTH)]


class Transformation(BaseModel):
    """What a route sends in place of a message's payload; either `fields` or `value`.

    Attributes:
        fields: an object's fields, each with a path or a CEL expression.
        value: a path or a CEL expression for the whole.
        replaces: `payload`: the payload within what the type sends. `body`: everything that it
            sends, where the type sends a document of its own, as webhooks do.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    fields: (
        Annotated[dict[FieldName, Formula], Field(min_length=1, max_length=MAX_FIELDS)] | None
    ) = None
    value: Formula | None = None
    replaces: Literal["payload", "body"] = "payload"

    @model_validator(mode="after")
    def _is_usable(self) -> "Transformation":
        if (self.fields is None) == (self.value is None):
            raise ValueError("write exactly one of fields and value")
        expressions = [text for text in self.formulas.values() if not _is_path(text)]
        for name, text in self.formulas.items():
            if _is_path(text):
                _check_path(text, _what(name))
            else:
                _check_formula(text, _what(name))
        together = "\n".join(expressions)
        if len(together) > MAX_LENGTH:
            raise ValueError(f"{_WHAT} has at most {MAX_LENGTH} characters of expressions in all")
        check_loops(together, _WHAT, placed=False)
        return self

    @property
    def formulas(self) -> Mapping[str, str]:
        """The formulas, each by the name of its field; empty for the whole."""
        return self.fields if self.fields is not None else {"": self.value or ""}


class TransformationFailed(ValueError):  # noqa: N818 - names what happened
    """A transformation has no result for a message.

    Attributes:
        field: the field whose formula failed; empty for the whole.
        is_undecided: it was not evaluated, and may have a result another time.
    """

    def __init__(self, field: str, reason: str, *, is_undecided: bool = False) -> None:
        self.field = field
        self.is_undecided = is_undecided
        super().__init__(f"{_what(field)}: {reason}")


class Transformer:
    """Applies a transformation. Paths are looked up here, expressions are evaluated elsewhere."""

    def __init__(self, transformation: Transformation) -> None:
        self.replaces = transformation.replaces
        self._is_object = transformation.fields is not None
        formulas = transformation.formulas
        self._paths = {name: text.split(".") for name, text in formulas.items() if _is_path(text)}
        self._names = list(formulas)
        self._evaluated = [name for name in formulas if name not in self._paths]
        self._steps = tuple(Step(formulas[name], "json") for name in self._evaluated)

    async def apply(
        self, evaluator: Evaluator, tenant_id: str, variables: Mapping[str, Any]
    ) -> Any:  # noqa: ANN401 - the author's choice
        """The result for a message: a JSON value of at most `MAX_RESULT_BYTES`.

        Args:
            evaluator: evaluates the expressions, on the tenant's budget.
            tenant_id: the tenant.
            variables: those of `variables_of`, with `stored_at` and `job_id`.

        Raises:
            TransformationFailed: it reads what the message lacks, fails, has a result that is no
                JSON value or too large, takes too long, or was not evaluated.
        """
        found = {name: _look_up(name, path, variables) for name, path in self._paths.items()}
        if self._steps:
            [answer] = await evaluator.evaluate([Ask(tenant_id, variables, self._steps)])
            if answer.outcome != Outcome.DONE:
                raise self._failure(answer)
            found |= zip(self._evaluated, answer.values, strict=True)
        result = {name: found[name] for name in self._names} if self._is_object else found[""]
        try:
            size_bytes = len(json.dumps(result, ensure_ascii=False, allow_nan=False).encode())
        except (ValueError, RecursionError):
            raise TransformationFailed("", "the result holds a value that JSON lacks") from None
        if size_bytes > MAX_RESULT_BYTES:
            raise TransformationFailed("", f"the result has more than {MAX_RESULT_BYTES} bytes")
        return result

    def _failure(self, answer: Answer) -> TransformationFailed:
        # What was stopped would be stopped again, so that alone is final.
        is_undecided = answer.outcome in {Outcome.OVER_BUDGET, Outcome.UNAVAILABLE}
        # Time is used by all of the formulas together.
        of_all = answer.outcome in UNDECIDED - {Outcome.UNREADABLE}
        field = "" if of_all else self._evaluated[answer.step]
        return TransformationFailed(field, answer.reason, is_undecided=is_undecided)


def _what(name: str) -> str:
    return f"the field {name!r} of {_WHAT}" if name else _WHAT


def _is_path(text: str) -> bool:
    return _PATH.fullmatch(text) is not None and text not in _LITERALS


def _check_path(text: str, what: str) -> None:
    name, dot, _ = text.partition(".")
    if name not in _VARIABLES:
        raise ValueError(f"{what} may use {', '.join(_VARIABLES)} only")
    if dot and isinstance(_VARIABLES[name], str):
        raise ValueError(f"{what} reads a field of {name}, which is a text")


def _check_formula(text: str, what: str) -> None:
    program = check_expression(text, what, _VARIABLES)
    try:
        evaluate_sample(program, _VARIABLES)
    except LookupError:
        return
    except ValueError as failure:
        raise ValueError(f"{what} {failure}") from failure


def _look_up(field: str, path: Sequence[str], variables: Mapping[str, Any]) -> Any:  # noqa: ANN401 - as above
    value: Any = variables
    for name in path:
        if not isinstance(value, Mapping) or name not in value:
            raise TransformationFailed(field, "the message lacks a field that it reads")
        value = value[name]
    return value


__all__ = [
    "MAX_FIELDS",
    "MAX_RESULT_BYTES",
    "Transformation",
    "TransformationFailed",
    "Transformer",
]
