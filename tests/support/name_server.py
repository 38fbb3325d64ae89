"""A real DNS server on loopback whose answers a test decides; it can be silent about a name."""

import asyncio
import ipaddress
import struct
from types import TracebackType
from typing import Self

_A = 1
_NO_SUCH_NAME = 3


class NameServer(asyncio.DatagramProtocol):
    """Answers queries for the names of `answers`, and is silent about the names of `silent`.

    Attributes:
        answers: lists of addresses by name, given in turn; the last one is repeated.
        silent: names about which it never answers.
        asked: the names in the order of their queries for IPv4 addresses.
    """

    def __init__(self) -> None:
        self.answers: dict[str, list[list[str]]] = {}
        self.silent: set[str] = set()
        self.asked: list[str] = []

    async def __aenter__(self) -> Self:
        self._transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: self, local_addr=("127.0.0.1", 0)
        )
        self.address = "127.0.0.1:{}".format(self._transport.get_extra_info("sockname")[1])
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._transport.close()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        name, end = _name(data)
        kind = int.from_bytes(data[end : end + 2], "big")
        if kind == _A:
            self.asked.append(name)
        if name not in self.silent:
            self._transport.sendto(self._reply(data, name, kind, end + 4), addr)

    def _reply(self, query: bytes, name: str, kind: int, end: int) -> bytes:
        turns = self.answers.get(name)
        addresses: list[str] = []
        if turns and kind == _A:
            addresses = turns.pop(0) if len(turns) > 1 else turns[0]
        code = 0 if turns else _NO_SUCH_NAME
        head = query[:2] + struct.pack(">HHHHH", 0x8180 | code, 1, len(addresses), 0, 0)
        records = b"".join(
            struct.pack(">HHHIH", 0xC00C, _A, 1, 60, 4) + ipaddress.ip_address(address).packed
            for address in addresses
        )
        return head + query[12:end] + records


def _name(query: bytes) -> tuple[str, int]:
    labels, at = [], 12
    while length := query[at]:
        labels.append(query[at + 1 : at + 1 + length].decode("ascii"))
        at += 1 + length
    return ".".join(labels).lower(), at + 1
