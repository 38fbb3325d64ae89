"""Reads what a route says of its delivery, and transforms jobs as it says."""

from dataclasses import dataclass

from pydantic import ValidationError

from functions.domain.delivery_options import DeliveryOptions
from functions.domain.evaluation.evaluator import Evaluator
from functions.domain.event_bodies import written
from functions.domain.expressions import variables_of
from functions.domain.transformations import TransformationFailed, Transformer
from functions.outbound.receipt import Receipt
from functions.route_delivery.job import Job, without_device_secret

_MAX_KEPT = 10_000
_NONE = "{}"
_WAIT_S = 60.0


@dataclass(frozen=True, slots=True)
class RouteOptions:
    """A route's options, ready for use; None for what the manifest says.

    Attributes:
        retry_delays_s: seconds to wait after each failed attempt.
        timeout_s: time limit of one attempt.
        transformer: makes what is sent in place of the payload.
        is_readable: False if something else than the management API stored them.
    """

    retry_delays_s: tuple[float, ...] | None = None
    timeout_s: float | None = None
    transformer: Transformer | None = None
    is_readable: bool = True

    @property
    def changes_job(self) -> bool:
        """Whether `transform` has something to do."""
        return self.transformer is not None or not self.is_readable

    async def transform(self, job: Job, evaluator: Evaluator) -> Job | Receipt:
        """The job to send, or why it is not sent.

        A job whose transformation fails or takes too long is refused, since another attempt would
        end so too. One whose transformation was not evaluated, as its tenant has used up its time,
        waits without using up an attempt.
        """
        if not self.is_readable:
            reason = "the route's delivery options cannot be read"
            return Receipt("refused", "ROUTE_CONFIG_INVALID", reason, health="unknown")
        if self.transformer is None:
            return job
        try:
            payload = await self.transformer.apply(evaluator, job.tenant_id, variables_of_job(job))
        except TransformationFailed as failed:
            return Receipt(
                "skipped" if failed.is_undecided else "refused",
                "TRANSFORMATION_FAILED",
                str(failed),
                retry_after_s=_WAIT_S if failed.is_undecided else None,
                health="unknown",
            )
        is_whole = self.transformer.replaces == "body"
        return job.model_copy(update={"payload": payload, "is_whole": is_whole})


class OptionsReader:
    """Reads stored options, each text once."""

    def __init__(self) -> None:
        self._kept: dict[str, RouteOptions] = {_NONE: RouteOptions()}

    def read(self, text: str) -> RouteOptions:
        """The options of a JSON text."""
        found = self._kept.get(text)
        if found is None:
            if len(self._kept) >= _MAX_KEPT:
                self._kept = {_NONE: RouteOptions()}
            found = self._kept[text] = _read(text)
        return found


def variables_of_job(job: Job) -> dict[str, object]:
    """The variables of a transformation."""
    of_message = variables_of(
        without_device_secret(job.payload),
        topic=job.topic,
        tenant_id=job.tenant_id,
        device_id=job.device_id,
        msg_type=job.msg_type,
    )
    return {**of_message, "stored_at": written(job.stored_at), "job_id": job.job_id}


def _read(text: str) -> RouteOptions:
    try:
        options = DeliveryOptions.model_validate_json(text)
        given = options.transformation
        transformer = None if given is None else Transformer(given)
    except (ValidationError, ValueError):
        return RouteOptions(is_readable=False)
    return RouteOptions(options.retry_delays_s, options.timeout_s, transformer)


__all__ = ["OptionsReader", "RouteOptions", "variables_of_job"]
