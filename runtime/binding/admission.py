"""Passes each delivered message through the function's stages into the buffer."""

from collections.abc import Callable, Sequence
from typing import Protocol

from runtime.binding.buffer import Places, PrefetchBuffer
from runtime.message import Message


class Stage(Protocol):
    """One step of a message's admission."""

    def admit(self, message: Message, places: Places) -> bool:
        """Whether the message goes on; if not, this stage holds it in the buffer.

        Args:
            message: the message as the pull loop delivered it.
            places: the pull loop's places, of which the message takes one.
        """


class Admission:
    """Passes each message through the stages, in order, into the buffer.

    Args:
        stages: the stages that the function needs, chosen when its binding is built.
        buffer: the buffer in which a message waits for its call.
    """

    def __init__(self, stages: Sequence[Stage], buffer: PrefetchBuffer) -> None:
        self._stages = tuple(stages)
        self._buffer = buffer
        self.admit: Callable[[Message, Places], None] = self._admit if stages else buffer.add
        """Take in a message that a pull loop delivered."""

    def _admit(self, message: Message, places: Places) -> None:
        for stage in self._stages:
            if not stage.admit(message, places):
                return
        self._buffer.add(message, places)
