"""What the suite needs to know of a route type: a real receiver, and ways in which it fails."""

import asyncio
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, ClassVar, Self

from tests.support.listener import Listener


@dataclass(frozen=True, slots=True)
class Arrived:
    """A message at the counterpart: its id, as far as the protocol has one, and its text."""

    identity: str
    text: str


@dataclass(frozen=True, slots=True)
class Scene:
    """A way in which a delivery ends.

    Attributes:
        code: of the attempt.
        config: what the route's configuration has in addition.
        settings: what the function's settings have in addition.
        payload: of the job.
        waits_s: the delay until the next attempt; None for that of the retry policy.
    """

    code: str
    config: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    payload: Any = None
    waits_s: float | None = None


class Counterpart(ABC):
    """A receiver of one route type, between `async with` and its end.

    Attributes:
        type_name: the type's.
        module: of the type.
        settings: of the function, beside the addresses that it may connect to.
        secrets: texts of the configuration that nobody may see.
        wrong: configurations that management must refuse.
        network: whether a tenant chooses the address.
        has_identity: whether a receiver can recognise a repeat.
    """

    type_name: ClassVar[str]
    module: ClassVar[str]
    settings: ClassVar[dict[str, Any]] = {}
    secrets: ClassVar[tuple[str, ...]]
    wrong: ClassVar[tuple[dict[str, Any], ...]]
    network: ClassVar[bool] = True
    has_identity: ClassVar[bool] = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """A configuration that leads here, without optional fields."""

    @abstractmethod
    async def arrived(self, count: int) -> list[Arrived]:
        """The messages, as soon as there are `count`."""

    @abstractmethod
    async def refused(self) -> Scene:
        """From now on: a refusal that another attempt would not change."""

    @abstractmethod
    async def failed(self) -> Scene:
        """From now on: a failure that may pass."""

    @abstractmethod
    def at(self, port: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Configuration and settings that lead to another port of this machine."""

    async def later(self) -> Scene | None:
        """From now on: it asks for fewer messages; None for a protocol that cannot say so."""
        return None


class SilentListener(Listener):
    """Accepts connections, and says nothing."""

    def __init__(self) -> None:
        super().__init__()
        self._came, self._went = asyncio.Event(), asyncio.Event()

    async def connected(self) -> None:
        """Return when a connection is there."""
        await asyncio.wait_for(self._came.wait(), 60)

    async def left(self) -> None:
        """Return when it is closed by the other side."""
        await asyncio.wait_for(self._went.wait(), 60)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._came.set()
        try:
            while await reader.read(65_536):
                pass
        except ConnectionError:
            pass
        finally:
            self._went.set()
            writer.close()
