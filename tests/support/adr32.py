"""The discovery answers of NATS ADR-32, revision 6, as strict models.

Required fields and their types are those of the ADR's text and of the schemas against which the
official command line checks each answer. The ADR allows more fields; a field that is not in it is
refused here, because a misspelt one would otherwise pass.
"""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, field_validator

Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]+$")]
Version = Annotated[
    str,
    Field(
        pattern=r"^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)"
        r"(-[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?(\+[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?$"
    ),
]
Int64 = Annotated[int, Field(ge=0, le=2**63 - 1)]


class Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class Identity(Strict):
    name: Name
    id: Annotated[str, Field(min_length=1)]
    version: Version
    metadata: dict[str, str]


class Ping(Identity):
    type: Literal["io.nats.micro.v1.ping_response"]


class DeclaredEndpoint(Strict):
    name: Name
    subject: Annotated[str, Field(min_length=1)]
    queue_group: str
    metadata: dict[str, str]


class Info(Identity):
    type: Literal["io.nats.micro.v1.info_response"]
    description: str
    endpoints: list[DeclaredEndpoint]


class EndpointStatistics(Strict):
    name: Name
    subject: Annotated[str, Field(min_length=1)]
    queue_group: str
    num_requests: Int64
    num_errors: Int64
    last_error: str
    processing_time: Int64
    average_processing_time: Int64
    data: dict[str, Any] = Field(default_factory=dict)


class Stats(Identity):
    type: Literal["io.nats.micro.v1.stats_response"]
    started: AwareDatetime
    endpoints: list[EndpointStatistics]

    @field_validator("started", mode="before")
    @classmethod
    def is_utc(cls, value: object) -> object:
        """RFC 3339 in UTC."""
        assert isinstance(value, str)
        assert value.endswith("Z")
        return datetime.fromisoformat(value)


MODELS: dict[str, type[Ping | Info | Stats]] = {"PING": Ping, "INFO": Info, "STATS": Stats}
