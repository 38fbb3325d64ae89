"""A version of a function between its `start` and its `stop`."""

import asyncio
from collections.abc import Mapping
from typing import Any

import structlog

from runtime.call.function_version import FunctionVersion, Owner, cancel_tasks_of
from runtime.context import BrokerPort, Scope, WatchedContext
from runtime.deployments.hooks import Hooks
from runtime.loader import Function
from runtime.observe.logs import get_logger
from runtime.observe.redaction import hide, secrets_in


class StartedFunction:
    """The scope of a version of a function; versions that differ only in the manifest share it.

    Args:
        function: the version.
        broker: the connection of its context.
        resources: what its manifest's `uses` lists, by name.

    Attributes:
        function: the version that runs.
        scope: what all calls share.
        owner: marks the tasks that its code creates.
    """

    def __init__(
        self, function: Function, broker: BrokerPort, resources: Mapping[str, Any]
    ) -> None:
        name = function.name
        bound: structlog.stdlib.BoundLogger = get_logger(name).bind(function=name)
        hide(secrets_in(function.settings))
        self.function = function
        self.scope = Scope(name, function.settings, broker, resources, bound)
        self.scope.max_attempts = function.spec.retry.max_attempts
        self.owner = Owner()
        self._hooks = Hooks(function, WatchedContext(self.scope), self.owner)
        self._versions: list[FunctionVersion] = []

    async def start(self, before: "StartedFunction | None" = None) -> None:
        """Call the module's `start`, then its `hand_over` when a version ran before.

        When a hook fails, what `start` has begun is stopped.

        Raises:
            ConfigError: a hook failed for a reason of its own.
            Unavailable: a server that a hook needs does not answer.
        """
        try:
            self.scope.state = await self._hooks.start()
        except BaseException:
            await cancel_tasks_of(self.owner, self.function.name)
            raise
        if before is None:
            return
        try:
            carried = await self._hooks.hand_over(before.scope.state)
        except BaseException:
            await self.stop()
            raise
        if carried is not None:
            self.scope.state = carried

    def as_version(self, function: Function | None = None) -> FunctionVersion:
        """A version for the dispatcher, with this scope; `function` replaces the one before."""
        self.function = function or self.function
        version = FunctionVersion(self.function, self.scope, self.owner)
        self._versions = [each for each in self._versions if not each.ended.is_set()]
        self._versions.append(version)
        return version

    async def wait_until_idle(self) -> None:
        """Return when the last call of all retired versions has ended."""
        await asyncio.gather(*(each.ended.wait() for each in self._versions))

    async def stop(self) -> None:
        """Call the module's `stop`, then cancel the background tasks that its code has started."""
        await self._hooks.stop()
        await cancel_tasks_of(self.owner, self.function.name)


__all__ = ["StartedFunction"]
