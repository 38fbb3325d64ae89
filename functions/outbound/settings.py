"""Settings that every route type has."""

from typing import Annotated

from pydantic import Field

from functions.domain.secret_box import SecretsSettings


class DeliverySettings(SecretsSettings):
    """Settings of the delivery to one type of destination; a type with more of them extends it.

    Attributes:
        timeout_s: time limit of one attempt.
        excerpt_bytes: how much of a destination's answer the attempt log keeps.
        retry_after_cap_s: the longest wait that an endpoint may ask for.
        per_endpoint: most attempts at a time to one endpoint of a tenant.
        per_origin: most attempts at a time to one origin, such as a host and port.
        breaker_calls: number of attempts from which on an endpoint may be paused.
        breaker_ratio: the share of failures within `breaker_window_s` that pauses it.
        breaker_window_s: how long an attempt counts.
        max_given_up_bytes: the most bytes of a tenant's refused and dead jobs, up to which a job
            that is given up leaves a dead letter and is kept to be sent again, with what a letter
            has beside the job. Beyond it, the job is only counted.
        breaker_pause_s: length of the pause, before one delivery probes the endpoint.
    """

    timeout_s: Annotated[float, Field(gt=0, le=120)] = 15.0
    excerpt_bytes: Annotated[int, Field(ge=0, le=65_536)] = 16_384
    retry_after_cap_s: Annotated[float, Field(ge=1, le=86_400)] = 3600.0
    per_endpoint: Annotated[int, Field(ge=1, le=1000)] = 32
    per_origin: Annotated[int, Field(ge=1, le=10_000)] = 256
    breaker_calls: Annotated[int, Field(ge=1, le=10_000)] = 10
    breaker_ratio: Annotated[float, Field(gt=0, le=1)] = 0.7
    breaker_window_s: Annotated[float, Field(ge=10, le=3600)] = 300.0
    max_given_up_bytes: Annotated[int, Field(ge=0, le=10**15)] = 64_000_000
    breaker_pause_s: Annotated[float, Field(gt=0, le=3600)] = 30.0


__all__ = ["DeliverySettings"]
