"""What a test sees and asserts of a host."""

from typing import Any

from runtime.broker.dead_letters import DeadLetter
from runtime.local.recorded_effects import Sent
from runtime.testing.journal import Decision, Expected, Journal, has_data

_RETRIED = ("nak", "park", "wait")


class Assertions:
    """Views of a journal, and assertions that print all of it when they fail."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    @property
    def decisions(self) -> list[Decision]:
        """How each delivery was settled, oldest first."""
        return list(self._journal.decisions)

    @property
    def dead_letters(self) -> list[DeadLetter]:
        """The dead letters of the host's functions, as of the last `settled` or `advance`."""
        return list(self._journal.letters)

    def published(self, pattern: str = ">") -> list[Sent]:
        """The messages that functions published on matching subjects, oldest first."""
        return self._journal.published(pattern)

    def assert_acked(
        self, function: str | None = None, *, subject: str = ">", count: int | None = None
    ) -> list[Decision]:
        """Assert that messages were acknowledged: at least one, or exactly `count`.

        Raises:
            AssertionError: with every decision.
        """
        found = self._journal.settled(["ack"], function, subject)
        expected = Expected("acked", {"function": function, "subject": subject})
        self._journal.check(found, count, str(expected))
        return found

    def assert_retried(
        self,
        function: str | None = None,
        *,
        subject: str = ">",
        count: int | None = None,
        reason: str = "",
    ) -> list[Decision]:
        """Assert that attempts failed and others follow; `reason` is part of the reason.

        Raises:
            AssertionError: with every decision.
        """
        found = self._journal.settled(_RETRIED, function, subject)
        found = [each for each in found if reason in each.settling.reason]
        fields = {"function": function, "subject": subject, "reason": reason or None}
        self._journal.check(found, count, str(Expected("retried", fields)))
        return found

    def assert_rejected(
        self,
        code: str | None = None,
        *,
        function: str | None = None,
        subject: str = ">",
        count: int | None = None,
    ) -> list[Decision]:
        """Assert that messages became dead letters, with this reason code if one is given.

        Raises:
            AssertionError: with every decision.
        """
        found = self._journal.settled(["dead letter"], function, subject)
        found = [each for each in found if code in (None, each.settling.code)]
        expected = Expected("rejected", {"code": code, "function": function, "subject": subject})
        self._journal.check(found, count, str(expected))
        return found

    def assert_published(
        self,
        subject: str = ">",
        data: Any = None,  # noqa: ANN401 - bytes, or what becomes JSON
        *,
        count: int | None = None,
    ) -> list[Sent]:
        """Assert that functions published on the subject: at least once, or exactly `count` times.

        Raises:
            AssertionError: with everything that was sent.
        """
        found = self._journal.published(subject)
        if data is not None:
            found = [each for each in found if has_data(each, data)]
        expected = Expected("published", {"subject": subject, "data": data})
        self._journal.check(found, count, str(expected))
        return found
