"""Base models of requests about accounts, quiet hours and rates."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from functions.domain.paging import Cursor
from functions.domain.values import Limit

RegionText = Annotated[
    str, StringConstraints(pattern=r"^(\+[1-9][0-9]{0,14}|[a-z0-9][a-z0-9-]{0,31})$")
]
"""A prefix of E.164 numbers, such as `+43`, or the name of a region, such as `eu-west`."""


def _check_distinct(regions: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(regions)) < len(regions):
        raise ValueError("a region stands there twice")
    return regions


Regions = Annotated[tuple[RegionText, ...], Field(max_length=100), AfterValidator(_check_distinct)]


class PolicyRequest(BaseModel):
    """Base of all requests. An unknown field is an error; no error repeats a value."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class PolicyList(PolicyRequest):
    """A request for a page of a list."""

    limit: Limit = 100
    cursor: Cursor | None = None
