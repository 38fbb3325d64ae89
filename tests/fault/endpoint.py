"""The webhook's receiver: records the jobs that it accepts, and refuses some at first."""

import json
from collections import Counter

from tests.support.receiver import Answer, Received, Receiver

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # The specification's example.


class Endpoint(Receiver):
    """Accepts a job at its first attempt; a `reluctant` job at its second.

    Attributes:
        accepted: the reading of each accepted job, by the job's id.
    """

    def __init__(self, *, reluctant_every: int = 0, retry_after_s: int | None = None) -> None:
        super().__init__()
        self.accepted: dict[str, int] = {}
        self.refused: set[str] = set()
        self._reluctant_every = reluctant_every
        self._headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}

    def answer_to(self, request: Received) -> Answer:
        job = request.headers["webhook-id"]
        number = int(json.loads(request.body)["data"]["payload"]["metrics"]["n"])
        if self._is_reluctant(number) and job not in self.refused:
            self.refused.add(job)
            # Not 429 and not 5xx, for which the circuit breaker would pause the whole endpoint.
            return Answer(409, self._headers)
        self.accepted[job] = number
        return Answer()

    def _is_reluctant(self, number: int) -> bool:
        return bool(self._reluctant_every) and number % self._reluctant_every == 0

    def readings(self) -> Counter[int]:
        """How many jobs of each reading were accepted."""
        return Counter(self.accepted.values())
