"""The stages that a delivered message passes on its way from a pull loop to the buffer."""

from collections.abc import Callable, Sequence
from typing import Protocol

from runtime.binding.buffer import Places, PrefetchBuffer
from runtime.message import Message


class Stage(Protocol):
    """One step of a message's way."""

    def admit(self, message: Message, places: Places) -> bool:
        """Whether the message goes on; if not, this stage holds it in the buffer meanwhile.

        Args:
            message: as the pull loop delivered it.
            places: which of the pull loops' places the message takes.
        """


class Admission:
    """Leads each message through the stages, in their order, into the buffer.

    Args:
        stages: those that the function needs, chosen when its binding is built.
        buffer: where a message waits for its call that no stage holds.
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
