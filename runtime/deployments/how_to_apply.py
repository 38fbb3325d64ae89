"""Decides how a new version of a function replaces the one that runs. Pure."""

from dataclasses import dataclass

from runtime.loader import Function
from runtime.manifest.model import BINDINGS, FunctionSpec


@dataclass(frozen=True, slots=True)
class Keep:
    """Nothing that the host runs has changed."""


@dataclass(frozen=True, slots=True)
class Swap:
    """The dispatcher runs the new version from the next call on; pulling is not touched.

    Attributes:
        starts: whether the new version gets a scope of its own, so that its `start` runs.
    """

    starts: bool


@dataclass(frozen=True, slots=True)
class Rebind:
    """The function's binding drains, and another is built; an endpoint's takes over at once.

    Attributes:
        starts: as in `Swap`.
    """

    starts: bool


@dataclass(frozen=True, slots=True)
class Restart:
    """The function ends and begins again: a service, or a function of another kind now."""


How = Keep | Swap | Rebind | Restart

_SCOPE_FIELDS = ("uses", "postgres_connections", "http_client")
"""A new value needs a new scope: the function's resources are in it."""
_QUEUE_FIELDS = (
    *("batch", "ordered_by", "fair_by", "priority_by", "concurrency"),
    *("max_in_flight", "max_in_flight_bytes", "rate"),
)
"""Read once when the binding of a consumer or schedule is built."""
_ENDPOINT_FIELDS = ("subject", "service", "queue_group", "max_waiting")
_SHOWN_ENDPOINT_FIELDS = ("description", "http")
_CALL_FIELDS = ("retry", "timeout", "start_timeout", "description", "handler")
"""Read at each call, or only shown."""


def how_to_apply(old: Function, new: Function) -> How:
    """How `new` replaces `old`, which has the same name.

    `isolate` is not looked at: it decides in which process a function runs. Nor are `links` and
    `needs`, of which the host tells when it starts.
    """
    kind = kind_of(new.spec)
    if kind != kind_of(old.spec):
        return Restart()
    starts = _is_other_code(old, new) or _differs(old.spec, new.spec, *_SCOPE_FIELDS)
    if kind == "service":
        # Its handler has the context of its start until it ends.
        return Restart() if starts else _swap_if(_differs(old.spec, new.spec, *_CALL_FIELDS))
    if _is_bound_otherwise(old, new):
        return Rebind(starts)
    if starts:
        return Swap(starts=True)
    is_shown = kind == "endpoint" and _differs(
        old.spec.endpoint, new.spec.endpoint, *_SHOWN_ENDPOINT_FIELDS
    )
    return _swap_if(is_shown or _differs(old.spec, new.spec, *_CALL_FIELDS))


def kind_of(spec: FunctionSpec) -> str:
    """The name of a function's one binding: consumer, endpoint, schedule or service."""
    return next(name for name in BINDINGS if getattr(spec, name))


def _swap_if(is_changed: bool) -> How:
    return Swap(starts=False) if is_changed else Keep()


def _is_other_code(old: Function, new: Function) -> bool:
    # Not `is`: each look-up of a method makes another object of the same method.
    same = (
        old.handler == new.handler
        and old.start == new.start
        and old.stop == new.stop
        and old.hand_over == new.hand_over
        and old.code_version == new.code_version
        and old.settings == new.settings
    )
    return not same


def _is_bound_otherwise(old: Function, new: Function) -> bool:
    if new.spec.endpoint:
        is_other = _differs(old.spec.endpoint, new.spec.endpoint, *_ENDPOINT_FIELDS)
        return is_other or old.spec.concurrency != new.spec.concurrency
    return (
        old.shape != new.shape
        or old.spec.consumer != new.spec.consumer
        or old.spec.schedule != new.spec.schedule
        or _differs(old.spec, new.spec, *_QUEUE_FIELDS)
    )


def _differs(old: object, new: object, *fields: str) -> bool:
    return any(getattr(old, field) != getattr(new, field) for field in fields)


__all__ = ["How", "Keep", "Rebind", "Restart", "Swap", "how_to_apply", "kind_of"]
