"""What the fleet has sent, and what its doors answered."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field

REPEATS = frozenset({"mqtt", "mosquitto"})
"""Doors at which a message may be stored twice: QoS 1 knows no message id beyond a connection."""


@dataclass
class Ledger:
    """The books of the senders.

    Attributes:
        stored: by device, the numbers of the readings whose storage was confirmed.
        doors: the door of each device.
        messages: confirmed messages, by door and kind.
        under_way: by device, the message that it is sending.
        refused: what doors answered to healthy devices in place of a confirmation.
        again: requests that were sent again, as the platform was away.
        garbage: answers to garbage, by door and answer.
        attacks: what attackers have tried, by name.
        breaches: what an attacker has achieved.
        commands: the commands that the API has accepted, by id, with their devices.
        executed: the commands that a device has received, by id, with the device.
    """

    stored: defaultdict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    doors: dict[str, str] = field(default_factory=dict)
    messages: Counter[tuple[str, str]] = field(default_factory=Counter)
    under_way: dict[str, str] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    again: Counter[str] = field(default_factory=Counter)
    garbage: Counter[tuple[str, str]] = field(default_factory=Counter)
    attacks: Counter[str] = field(default_factory=Counter)
    breaches: list[str] = field(default_factory=list)
    commands: dict[str, str] = field(default_factory=dict)
    executed: dict[str, str] = field(default_factory=dict)

    def confirmed(self, door: str, device: str, kind: str, number: int) -> None:
        """A door has confirmed a message."""
        self.messages[door, kind] += 1
        if not kind.startswith(("shadow", "commands")):
            self.stored[device].add(number)
