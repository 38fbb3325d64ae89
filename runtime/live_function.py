"""Opens one function with its real resources outside a host, for commands that call it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from runtime.broker.connection import Broker
from runtime.context import Scope, WatchedContext
from runtime.dispatch import Dispatcher
from runtime.errors import Unavailable
from runtime.hooks import call_start, call_stop
from runtime.loader import Function
from runtime.observe.logs import get_logger
from runtime.observe.redaction import hide, secrets_in
from runtime.resource.shared import SharedResources
from runtime.threads import FunctionThreads


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
    log: structlog.stdlib.BoundLogger = get_logger(function.name).bind(function=function.name)
    scope = Scope(function.name, function.settings, broker, resources.of(function), log)
    hide(secrets_in(function.settings))
    context: WatchedContext = WatchedContext(scope)
    if function.start is not None:
        limit_s = function.spec.start_timeout
        scope.state = await call_start(function.name, function.start, context, limit_s)
    threads = FunctionThreads(function.name, function.spec.concurrency)
    try:
        yield Dispatcher(function, scope, threads=threads)
    finally:
        if function.stop is not None:
            await call_stop(function.name, function.stop, context)
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
