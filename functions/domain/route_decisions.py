"""Whether routes take a message: their filters and order keys, and what the answers mean."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from functions.domain.delivery_options import OrderKey
from functions.domain.evaluation.values import UNDECIDED, Answer, Outcome, Step, Steps

Verdict = Literal["taken", "not_taken", "undecided"]

_CODES: Mapping[Outcome, str] = {
    Outcome.MISSING: "FIELD_MISSING",
    Outcome.FAILED: "FILTER_FAILED",
    Outcome.UNREADABLE: "FILTER_UNREADABLE",
    Outcome.STOPPED: "FILTER_STOPPED",
    Outcome.OVER_BUDGET: "FILTERS_OVER_BUDGET",
    Outcome.UNAVAILABLE: "FILTERS_UNAVAILABLE",
}


class Decision(NamedTuple):
    """Whether a route takes a message.

    Attributes:
        verdict: `undecided`: the filter says nothing of the message, since it was not evaluated to
            its end. No job is made then: to serve the route without its filter would send messages
            to a destination that is not to have them.
        code: why it is not taken; None if it is.
        reason: one sentence, of which no part comes from the message.
        detail: what the engine says, which may hold parts of the message.
        key: the value of the order key's expression.
    """

    verdict: Verdict
    code: str | None = None
    reason: str = ""
    detail: str = ""
    key: str = ""


LATER = frozenset({"FILTERS_OVER_BUDGET", "FILTERS_UNAVAILABLE"})
"""The codes of what may be decided another time."""
TAKEN = Decision("taken")
_FILTER_FALSE = Decision("not_taken", "FILTER_FALSE", "the payload filter is false")


def steps_of(payload_filter: str | None, order_key: OrderKey | None) -> Steps:
    """What is to be evaluated for a message on a route's topics; may be nothing."""
    steps: list[Step] = []
    if payload_filter:
        steps.append(Step(payload_filter, "boolean"))
    if order_key is not None and order_key.expression is not None:
        steps.append(Step(order_key.expression, "key"))
    return tuple(steps)


def decide(steps: Steps, answer: Answer) -> Decision:
    """What an answer means. A filter that fails on a message does not take it."""
    if answer.outcome == Outcome.DONE:
        if answer.values[0] is False:
            return _FILTER_FALSE
        key = answer.values[-1] if steps[-1].form == "key" else ""
        return Decision("taken", key=key)
    verdict: Verdict = "undecided" if answer.outcome in UNDECIDED else "not_taken"
    return Decision(verdict, _CODES[answer.outcome], answer.reason, answer.detail)


def job_subject(
    tenant_id: str,
    destination_type: str,
    order_key: OrderKey | None,
    variables: Mapping[str, Any],
    key: str,
) -> str:
    """Where a job is published."""
    subject = f"routes.{tenant_id}.{destination_type}"
    return subject if order_key is None else f"{subject}.{order_key.token(variables, key)}"


__all__ = ["LATER", "TAKEN", "Decision", "Verdict", "decide", "job_subject", "steps_of"]
