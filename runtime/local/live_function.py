"""Opens one function with its real resources outside a host, for commands that call it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from runtime.broker.connection import Broker
from runtime.call.threads import FunctionThreads
from runtime.deployments.started_function import StartedFunction
from runtime.dispatch import Dispatcher
from runtime.errors import Unavailable
from runtime.loader import Function
from runtime.resource.shared import SharedResources


@asynccontextmanager
async def open_resources(
    function: Function, database_url: str | None, connections: int
) -> AsyncIterator[SharedResources]:
    """Open the resources that a function uses.

    Raises:
        ConfigError: the address of PostgreSQL cannot be used.
        Unavailable: PostgreSQL does not answer.
    """
    resources = SharedResources({function.name: function}, database_url, connections)
    try:
        await resources.open()
        yield resources
    finally:
        await resources.close()


@asynccontextmanager
async def open_dispatcher(
    function: Function, broker: Broker, resources: SharedResources
) -> AsyncIterator[Dispatcher]:
    """Run a function's `start`, yield its dispatcher, and run its `stop`.

    Raises:
        ConfigError: `start` failed.
        Unavailable: a server that `start` needs does not answer.
    """
    started = StartedFunction(function, broker, resources.of(function))
    await started.start()
    threads = FunctionThreads(function.name, function.spec.concurrency)
    try:
        yield Dispatcher(function, started.scope, threads=threads)
    finally:
        await started.stop()
        threads.shutdown()


async def servers_answer(broker: Broker, resources: SharedResources) -> bool:
    """Whether NATS, and PostgreSQL if it is used, answer now."""
    try:
        await broker.ping()
        if resources.uses("postgres"):
            await resources.check_postgres()
    except Unavailable:
        return False
    return True
