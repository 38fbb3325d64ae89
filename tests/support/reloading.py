"""Makes new versions of a running host's functions, as a reload would."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from runtime.function_change import FunctionChange
from runtime.host import Host
from runtime.loader import Function, LoadFailure, load_all
from runtime.manifest import Manifest
from tests.support.host import make_manifest


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
