"""What a route may say of its delivery: retry schedule, time limit, transformation, order."""

import base64
import hashlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from functions.domain.expressions import (
    check_expression,
    check_loops,
    evaluate_sample,
)
from functions.domain.transformations import Transformation

MAX_RETRIES = 20
MAX_TOTAL_S = 14 * 86_400
_WHAT = "an order key"
_PLAIN_KEYS = frozenset({"device_id", "topic", "msg_type"})
_TOKEN_BYTES = 15

Delay = Annotated[float, Field(ge=1, le=86_400)]


def _check_total(delays_s: tuple[float, ...]) -> tuple[float, ...]:
    if sum(delays_s) > MAX_TOTAL_S:
        raise ValueError(f"the delays last at most {MAX_TOTAL_S // 86_400} days together")
    return delays_s


RetryDelays = Annotated[
    tuple[Delay, ...], Field(max_length=MAX_RETRIES), AfterValidator(_check_total)
]


class DeliveryOptions(BaseModel):
    """What a route says of its delivery in place of its type's manifest; None for the manifest's.

    Attributes:
        retry_delays_s: seconds to wait after each failed attempt; one attempt more than delays.
        timeout_s: time limit of one attempt.
        transformation: what is sent in place of the payload.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    retry_delays_s: RetryDelays | None = None
    timeout_s: Annotated[float, Field(ge=1, le=30)] | None = None
    transformation: Transformation | None = None


def _check_order_key(text: str) -> str:
    if text in _PLAIN_KEYS:
        return text
    program = check_expression(text, _WHAT)
    if check_loops(text, _WHAT) or "matches" in text:
        # A slow expression rests for a while, in which its messages would have no key.
        raise ValueError(f"{_WHAT} has no loop and no matches")
    with suppress(LookupError):
        try:
            evaluate_sample(program)
        except ValueError as failure:
            raise ValueError(f"{_WHAT} {failure}") from failure
    return text


OrderKeyText = Annotated[
    str, StringConstraints(min_length=1, max_length=1024), AfterValidator(_check_order_key)
]
"""A CEL expression whose value is a message's key; messages of one key are delivered in order."""


class OrderKey:
    """An order key of a route.

    Attributes:
        expression: whose value is the key, for `functions.domain.evaluation` in the form `key`;
            None for a key that needs no evaluation.
    """

    __slots__ = ("_name", "_route_id", "expression")

    def __init__(self, text: str, route_id: str) -> None:
        self._route_id = route_id
        self._name = text if text in _PLAIN_KEYS else None
        self.expression = None if self._name else text

    def token(self, variables: Mapping[str, Any], evaluated: str = "") -> str:
        """A token of a subject for the message's key, of its own for each route.

        A message without the key, or for which the expression fails, has the empty key: all such
        messages of a route are in order too. The token is a hash, so a key may hold anything.

        Args:
            variables: the message's.
            evaluated: the value of `expression` for it.
        """
        key = str(variables[self._name]) if self._name is not None else evaluated
        return token_of(self._route_id, key)


def token_of(route_id: str, key: str) -> str:
    """The subject's token of a key: 24 characters, the same in every process."""
    digest = hashlib.sha256(f"{route_id}\0{key}".encode(errors="surrogatepass")).digest()
    return base64.b32encode(digest[:_TOKEN_BYTES]).decode().lower()


__all__ = [
    "MAX_RETRIES",
    "DeliveryOptions",
    "OrderKey",
    "OrderKeyText",
    "RetryDelays",
    "token_of",
]
