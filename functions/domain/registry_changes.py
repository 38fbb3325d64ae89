"""The question of doors without a database for what has changed in the registry, and the answer."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

SUBJECT = "management.devices.watch"
"""The endpoint's subject."""

MOST_WAIT_S = 0.5
"""How long one question may wait; then it is asked again. A host that ends waits for it, and there
is always one of each gateway."""


class WatchRegistry(BaseModel):
    """A question for what has changed.

    Attributes:
        after: the `position` of the last answer; empty at first.
        wait_s: how long to wait for a change when there is none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    after: Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{16}-[0-9]{1,18})?$")] = ""
    wait_s: Annotated[float, Field(ge=0, le=MOST_WAIT_S)] = 0.0


class RegistryChanges(BaseModel):
    """What has changed, as `functions.domain.changes` writes it.

    Attributes:
        position: for the next question.
        changes: `device/{tenant}/{device}`, `tenant/{id}`, or `all` when anything may have changed.
            Some may have been told before.
    """

    position: str
    changes: list[str]


__all__ = ["MOST_WAIT_S", "SUBJECT", "RegistryChanges", "WatchRegistry"]
