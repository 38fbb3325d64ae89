"""What is asked of the evaluator, and what it answers."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Literal, NamedTuple

Form = Literal["boolean", "key", "json"]


class Step(NamedTuple):
    """An expression, and what its value must be.

    Attributes:
        text: the expression.
        form: `boolean`: true or false. `key`: a text or a number, which becomes a text; anything
            else, and a failure too, is the empty key. `json`: a value that JSON has.
    """

    text: str
    form: Form


Steps = tuple[Step, ...]


class Ask(NamedTuple):
    """Expressions to evaluate for one message, one after the other.

    Attributes:
        tenant_id: whose budget pays.
        variables: the message's, of JSON's types. Asks about one message share the object, and the
            engine then converts it once.
        steps: one step that gives false, or none of what it must, ends them.
        size_bytes: about the size of the message.
    """

    tenant_id: str
    variables: Mapping[str, Any]
    steps: Steps
    size_bytes: int = 1000


class Outcome(StrEnum):
    """How an ask ended."""

    DONE = "done"
    MISSING = "missing"
    """A step reads a field that the message lacks."""
    FAILED = "failed"
    """A step fails on this message."""
    UNREADABLE = "unreadable"
    """A step is no expression: something else than the management API has stored it."""
    STOPPED = "stopped"
    """It took too long, and was stopped."""
    OVER_BUDGET = "over_budget"
    """It was not evaluated, as its tenant has used its time."""
    UNAVAILABLE = "unavailable"
    """It was not evaluated, as there is no process for it."""


UNDECIDED = frozenset(
    {Outcome.UNREADABLE, Outcome.STOPPED, Outcome.OVER_BUDGET, Outcome.UNAVAILABLE}
)
"""The outcomes that say nothing of the message."""


class Answer(NamedTuple):
    """The result of an ask.

    Attributes:
        outcome: how it ended.
        values: of the steps that were evaluated; a false one is the last.
        step: the step that ended it, counted from 0.
        reason: one sentence, of which no part comes from the message.
        detail: what the engine says, which may hold parts of the message: for its author alone.
    """

    outcome: Outcome
    values: tuple[Any, ...] = ()
    step: int = 0
    reason: str = ""
    detail: str = ""


__all__ = ["UNDECIDED", "Answer", "Ask", "Form", "Outcome", "Step", "Steps"]
