"""Sends the supervisor's log lines to listeners: the ends of workers, and what reloads did."""

import asyncio

from runtime.broker.connection import Broker
from runtime.errors import RuntimeFault
from runtime.log_stream.log_publisher import LogPublisher
from runtime.observe.logs import get_logger
from runtime.process_identity import ProcessIdentity
from runtime.supervised_task import SupervisedTask

log = get_logger("runtime.workers")

AGAIN_S = 5.0
"""Pause before another attempt to connect."""


class SupervisorLogs:
    """A connection to NATS for the supervisor's log lines alone.

    The supervisor works without it: while NATS is away at the start, it is tried again quietly,
    since each worker says so.

    Args:
        nats_url: the address; may contain a password.
    """

    def __init__(self, nats_url: str) -> None:
        self._nats_url = nats_url
        self._task = SupervisedTask(self._run, "supervisor's log lines")

    def start(self) -> None:
        """Begin to connect."""
        self._task.start()

    async def stop(self) -> None:
        """Send the lines that wait, and close the connection."""
        await self._task.stop()

    async def _run(self) -> None:
        while True:
            try:
                broker = await Broker.connect(self._nats_url, name="runtime supervisor")
            except RuntimeFault as failure:
                log.debug("The supervisor's log lines cannot be sent yet", reason=str(failure))
                await asyncio.sleep(AGAIN_S)
                continue
            publisher = LogPublisher(broker, ProcessIdentity(worker="supervisor"), ())
            try:
                await publisher.start()
                await broker.wait_until_ended()
            finally:
                await publisher.stop()
                await broker.close()


__all__ = ["SupervisorLogs"]
