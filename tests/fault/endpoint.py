"""The webhook's receiver: remembers what it has accepted, and asks now and then to come again."""

import json
from collections import Counter

from tests.support.receiver import Answer, Received, Receiver

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # the specification's example


class Endpoint(Receiver):
    """Accepts a job at its first attempt, or `reluctant` ones at their second.

    Attributes:
        accepted: for each job, by the id that stays the same on every attempt, its reading.
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
            # Not 429 and not 5xx, which would have the whole endpoint left alone for a while.
            return Answer(409, self._headers)
        self.accepted[job] = number
        return Answer()

    def _is_reluctant(self, number: int) -> bool:
        return bool(self._reluctant_every) and number % self._reluctant_every == 0

    def readings(self) -> Counter[int]:
        """How many jobs of each reading were accepted."""
        return Counter(self.accepted.values())
