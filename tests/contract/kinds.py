"""The kinds of functions that the contract holds for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of function.

    Attributes:
        name: the kind's name in the ids of tests.
        handler: name in `tests.contract.function`, for raw messages.
        typed_handler: name of the handler for a payload with a schema; empty when the kind gets no
            payload.
        spec: further keys of the manifest; keys of `consumer` are merged.
    """

    name: str
    handler: str
    typed_handler: str = ""
    spec: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_threaded(self) -> bool:
        return self.handler.endswith("_in_thread")

    @property
    def is_scheduled(self) -> bool:
        return "schedule" in self.spec

    @property
    def is_ordered(self) -> bool:
        return "ordered_by" in self.spec

    @property
    def is_isolated(self) -> bool:
        return bool(self.spec.get("isolate"))


# The next tick but the first is due in 2052.
_AT_START = {"schedule": {"every": "30000d", "at_start": True}}
_LEVELS = {"field": "priority", "weights": {"high": 8, "bulk": 1}, "default": "bulk"}

KINDS = (
    Kind("single", "on_event", "on_order"),
    Kind("single_in_thread", "on_event_in_thread", "on_order_in_thread"),
    Kind("batch", "on_batch", "on_orders"),
    Kind("batch_in_thread", "on_batch_in_thread", "on_orders_in_thread"),
    Kind("isolated", "on_event", "on_order", {"isolate": True}),
    Kind("ordered", "on_event", "on_order", {"ordered_by": {"token": 2}}),
    Kind("ordered_batch", "on_batch", "on_orders", {"ordered_by": {"token": 2}}),
    # Fairness alone: tests/integration/test_fairness.py.
    Kind("fair", "on_event", "on_order", {"fair_by": {"token": 2}, "priority_by": _LEVELS}),
    Kind("scheduled", "on_tick", spec=_AT_START),
    Kind("scheduled_in_thread", "on_tick_in_thread", spec=_AT_START),
)


def named(*names: str) -> tuple[Kind, ...]:
    """The kinds with these names."""
    return tuple(kind for kind in KINDS if kind.name in names)
