"""A connection to the system account of a NATS cluster, whose subjects are the servers' own."""

from collections.abc import Callable
from typing import Self

from runtime.broker.connection import Broker
from runtime.broker.subscription import Subscription
from runtime.context import Reply


class SystemAccount:
    """Asks the servers of the cluster.

    Implements `runtime.context.SystemPort`.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    @classmethod
    async def connect(cls, url: str) -> Self:
        """Connect, and reconnect after every loss until `close`.

        Raises:
            ConfigError: the user may not receive answers.
            Unavailable: no server answered in time, or the server refused the connection.
        """
        return cls(await Broker.connect(url, name="runtime system account"))

    async def close(self) -> None:
        """Close the connection."""
        await self._broker.close()

    @property
    def reconnects(self) -> int:
        """How often the connection was lost and rebuilt; events in between were not heard."""
        return self._broker.reconnects

    async def request(self, subject: str, data: bytes = b"", *, timeout_s: float) -> Reply:
        """The first answer; raises NoAnswer when no server answers."""
        return await self._broker.request(subject, data, timeout_s=timeout_s)

    async def request_many(self, subject: str, data: bytes = b"", *, wait_s: float) -> list[Reply]:
        """The answers of all servers that arrive within `wait_s` seconds, maybe none."""
        return await self._broker.request_many(subject, data, wait_s=wait_s)

    async def subscribe(self, subject: str, on_event: Callable[[str, bytes], None]) -> Subscription:
        """Call `on_event` with subject and data of each event; returns when the server knows it.

        Raises:
            Unavailable: the connection is closed, or the server does not answer.
            Unsendable: the subject is not one to subscribe to.
        """
        listening = await self._broker.subscribe(
            subject, lambda message: on_event(message.subject, message.data)
        )
        await self._broker.flush()
        return listening


__all__ = ["SystemAccount"]
