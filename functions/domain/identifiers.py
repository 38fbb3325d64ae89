"""Ids: of tenants and devices as types for request models, with the rules of `topics`; of jobs."""

from typing import Annotated

from pydantic import StringConstraints

TenantId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
DeviceId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:-]{1,128}$")]


def job_id(origin: str, route_id: str) -> str:
    """The id of the job that one stored message makes for one route, the same on every delivery.

    Args:
        origin: the message's, see `Message.origin`.
        route_id: the route's.
    """
    return f"{origin}-{route_id}"


__all__ = ["DeviceId", "TenantId", "job_id"]
