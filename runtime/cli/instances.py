"""Asks the hosts which functions they run; an instance is one process's answer about one function.

Any client may answer a discovery request, so an answer is checked before it is shown.
"""

import asyncio
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from runtime.broker.connection import Broker
from runtime.cli.selection import Kind

ANSWERS_S = 1.0
"""How long to wait for the hosts' answers."""

Count = Annotated[int, Field(ge=0, le=2**63)]
Text = Annotated[str, BeforeValidator(lambda value: "" if value is None else value)]


class Recent(BaseModel):
    """The load of one instance over the last `seconds`.

    Attributes:
        errors: those of `messages` whose attempt failed.
        handler_seconds: number of calls by the upper bound of their time.
    """

    model_config = ConfigDict(frozen=True)

    seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    messages: Count
    errors: Count
    handler_seconds: dict[Annotated[float, Field(ge=0)], Count]


class Instance(BaseModel):
    """One process that runs a function.

    Attributes:
        service: the micro service of an endpoint.
        bound_to: the subject of an endpoint.
        id: the id of the micro service, new at each start of the process.
        requests: messages or requests since the start, for consumers and endpoints.
        recent: the load; None for a service function.
    """

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    function: Annotated[str, Field(min_length=1)]
    kind: Kind
    service: str = ""
    bound_to: str = ""
    id: str
    host: Text = ""
    pid: Text = ""
    worker: Text = ""
    version: Annotated[str, Field(alias="code_version")]
    version_since: Text = ""
    reloaded_at: Text = ""
    reload_error: Text = ""
    drifted: Text = ""
    requests: Count = 0
    errors: Count = 0
    recent: Recent | None = None

    @property
    def place(self) -> str:
        """The process in words: `web-1 (pid 4711, worker 2)`."""
        worker = f", worker {self.worker}" if self.worker else ""
        return f"{self.host or 'unknown'} (pid {self.pid or 'unknown'}{worker})"


async def ask_hosts(broker: Broker, wait_s: float = ANSWERS_S) -> list[Instance]:
    """The instances of all functions on all hosts that answer within `wait_s`.

    Raises:
        Unavailable: the connection is gone.
    """
    found: list[Instance] = []
    for reply in await broker.request_many("$SRV.STATS", b"", wait_s=wait_s):
        try:
            service = orjson.loads(reply.data)
            found.extend(_instances_of(service))
        except (ValueError, KeyError, TypeError, AttributeError):
            pass  # Another application's service, whose answer may have any form.
        # Many hosts with many functions: the connection must be read meanwhile.
        await asyncio.sleep(0)
    return found


def _instances_of(service: Mapping[str, Any]) -> Iterator[Instance]:
    process = service.get("metadata") or {}
    identity = {name: process.get(name) for name in ("host", "pid", "worker")}
    if "handler" in process:
        yield from _checked({**process, **identity, "kind": "service", "id": service["id"]})
        return
    for endpoint in service["endpoints"]:
        data = endpoint.get("data") or {}
        if "function" not in data:
            continue
        is_endpoint = data.get("kind") == "endpoint"
        yield from _checked(
            {
                **data,
                **identity,
                "id": service["id"],
                "service": service["name"] if is_endpoint else "",
                "bound_to": endpoint["subject"],
                "requests": endpoint["num_requests"],
                "errors": endpoint["num_errors"],
            }
        )


def _checked(fields: Mapping[str, Any]) -> Iterator[Instance]:
    try:
        yield Instance.model_validate(fields)
    except ValidationError:
        return


__all__ = ["ANSWERS_S", "Instance", "Recent", "ask_hosts"]
