"""Makes new versions of a running host's functions, as a reload would."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any

from runtime.broker.connection import Broker
from runtime.deployments.function_change import FunctionChange
from runtime.host import Host
from runtime.loader import Function, LoadFailure, load_all
from runtime.manifest import Manifest
from tests.support.host import Journal, fresh, make_manifest, running_host
from tests.support.servers import NatsServer


class Project:
    """The functions and streams that a host shall serve; `save` changes some and reloads.

    A version's code is a handler of the test; its code version is the name of that version.
    """

    def __init__(
        self, functions: Mapping[str, Any], streams: Mapping[str, Any] | None = None
    ) -> None:
        self.streams = dict(streams or {})
        self.specs = dict(functions)
        self.errors: dict[str, LoadFailure] = {}
        self._code: dict[str, dict[str, Any]] = {}
        self._loaded: dict[str, Function] = {}

    def manifest(self) -> Manifest:
        """The manifest as it is on disk."""
        return make_manifest(self.specs, self.streams)

    def write(self, name: str, code_version: str = "", **code: Any) -> None:
        """Change a function's code: its handler, `start`, `stop`, `hand_over`, `settings`."""
        self._code[name] = {**self._code.get(name, {}), **code, "code_version": code_version}

    def declare(self, name: str, **fields: Any) -> None:
        """Change fields of a function's entry in the manifest."""
        self.specs[name] = {**self.specs.get(name, {}), **fields}

    def remove(self, name: str) -> None:
        """Remove a function from the manifest."""
        del self.specs[name]

    def functions(self) -> dict[str, Function]:
        """All functions, loaded; one that did not change is the same object."""
        loaded = {
            name: replace(function, **self._code.get(name, {}))
            for name, function in load_all(self.manifest()).items()
        }
        self._loaded = {
            name: found if (found := self._loaded.get(name)) == function else function
            for name, function in loaded.items()
        }
        return dict(self._loaded)

    async def reload(self, host: Host) -> dict[str, FunctionChange]:
        """Let the host follow; return its changes by function."""
        changes = await host.apply(self.manifest(), self.functions(), self.errors)
        return {change.name: change for change in changes}

    async def save(self, host: Host, name: str, version: str, **code: Any) -> FunctionChange:
        """Change one function's code, and return what a reload did to it."""
        self.write(name, version, **code)
        return (await self.reload(host))[name]


def noting(entries: Callable[[Any], None], what: Any) -> Callable[..., Any]:
    """A handler that passes `what` with the event's data to `entries`."""

    async def handler(event: Any, ctx: Any) -> None:
        entries((what, event.data))

    return handler


class Gate:
    """A handler that tells that its call has begun, and waits to be let on."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()

    async def __call__(self, event: Any, ctx: Any) -> None:
        self.begun.set()
        await self.go_on.wait()


def consuming(stream: str, work: str, handler: str = "on_event", **spec: Any) -> Project:
    """A project with one function that consumes one stream."""
    stated = {"handler": handler, "consumer": {"stream": stream}, **spec}
    return Project({work: stated}, {stream: {"subjects": [f"{stream}.>"]}})


def names() -> tuple[str, str]:
    """Unique names of a stream and a function."""
    return fresh("S"), fresh("work")


def serve(
    server: NatsServer, project: Project, *, does: Callable[..., Any]
) -> AbstractAsyncContextManager[Host]:
    """Run a host with the project's functions, each of which does the same at first."""
    behaviours = dict.fromkeys(project.specs, does)
    return running_host(server.url, project.specs, behaviours, streams=project.streams)


def adding(journal: Journal, what: str) -> Callable[..., Any]:
    """A behaviour that notes `what` with the event's data."""

    async def act(ctx: Any, event: Any) -> None:
        journal.add((what, event.data))

    return act


async def publish(broker: Broker, stream: str, *numbers: int) -> None:
    """Store numbered messages."""
    for number in numbers:
        await broker.publish(f"{stream}.a", b"%d" % number, msg_id=f"{stream}-{number}")
