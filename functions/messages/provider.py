"""What a provider of messages does, and what an attempt results in."""

from dataclasses import dataclass
from typing import Literal, Protocol

from functions.messages.contents import OutMessage

Outcome = Literal["sent", "delivered", "failed", "busy", "refused", "unknown"]


@dataclass(frozen=True, slots=True)
class Receipt:
    """The result of one attempt.

    Attributes:
        outcome: `sent` means that the provider has accepted the message, `delivered` that the
            recipient has it. `failed`: the provider certainly has not accepted it, and another
            attempt may help; `busy`: the same, but for a reason that is not the message's, so the
            attempt does not count. `refused`: another attempt would not help. `unknown`: the
            provider may have accepted it; never tried again before that is known.
        code: reason code in upper snake case; empty when sent or delivered.
        reason: one sentence for a person, without secrets and without the message's content.
        provider_id: the provider's id of the message.
        retry_after_s: seconds to wait, as the provider asked.
    """

    outcome: Outcome
    code: str = ""
    reason: str = ""
    status_code: int | None = None
    provider_id: str | None = None
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Admission:
    """Whether a message may be sent now, and by which account.

    Attributes:
        account: the provider's account; stands in the row before the attempt begins.
        wait_s: more than 0: not now, but after this time. Uses up no attempt.
        reason: why not now.
    """

    account: str = ""
    wait_s: float = 0.0
    reason: str = ""


class Provider(Protocol):
    """Sends messages of one kind.

    Attributes:
        repeats_are_safe: whether the recipient recognizes a message that is sent twice by its id,
            so that an attempt of unknown result is simply made again.
        check_sent_after_s: seconds after which the state of a sent message is looked up; None when
            the provider has no look-up.
        look_up_after_s: seconds after which an attempt of unknown result is looked up; None when
            the provider has no look-up, so that a person must settle it.
    """

    @property
    def repeats_are_safe(self) -> bool: ...  # noqa: D102 - see above

    @property
    def check_sent_after_s(self) -> float | None: ...  # noqa: D102 - see above

    @property
    def look_up_after_s(self) -> float | None: ...  # noqa: D102 - see above

    async def admit(self, message: OutMessage) -> Admission:
        """Decide whether the message may be sent now; quick, and without effect."""

    async def send(self, message: OutMessage, account: str) -> Receipt:
        """Make one attempt. An exception counts as `unknown`."""
