"""First-in, first-out queue that admits one message for each token of a bucket.

For a function with a rate and without keys. No I/O; the token bucket has the clock.
"""

from collections import deque

from runtime.message import Message
from runtime.queueing.token_bucket import TokenBucket


class RateLimitedQueue:
    """Messages in their order of arrival; only admitted ones count and can be taken.

    Args:
        token_bucket: gives one token for each admitted message.
    """

    def __init__(self, token_bucket: TokenBucket) -> None:
        self._token_bucket = token_bucket
        self._admitted: deque[Message] = deque()
        self._early: deque[Message] = deque()

    def __len__(self) -> int:
        self._admit()
        return len(self._admitted)

    def __getitem__(self, place: int, /) -> Message:
        return self._admitted[place]

    def append(self, message: Message, /) -> None:
        """Add a message, which is admitted after those before it."""
        self._early.append(message)
        self._admit()

    def popleft(self) -> Message:
        """Remove the next admitted message.

        Raises:
            IndexError: there is none.
        """
        return self._admitted.popleft()

    def take_early(self) -> list[Message]:
        """Remove the messages that are not admitted."""
        self._admit()
        early, self._early = list(self._early), deque()
        return early

    def free_tokens(self) -> int:
        """The number of tokens that no message waits for: so many more messages may be fetched."""
        return max(0, self._token_bucket.count() - len(self._early))

    def next_in_s(self) -> float | None:
        """Seconds until the next token; None when the bucket is full."""
        return self._token_bucket.next_in_s()

    def _admit(self) -> None:
        while self._early and self._token_bucket.take():
            self._admitted.append(self._early.popleft())
