import asyncio
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.errors import ProtocolError

from runtime.broker.incoming import LONGEST_LINE_BYTES, HeaderError, Parser, read_headers

PART = st.binary(min_size=1, max_size=12).map(lambda raw: raw.translate(None, b" \t\r\n") or b"s")
FRAME = st.tuples(
    PART, st.integers(1, 99), PART | st.just(b""), st.binary(max_size=80), st.binary(max_size=30)
)
Frame = tuple[bytes, int, bytes, bytes, bytes]


class Recorder:
    """Records the messages of a parser."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.is_connected = True

    def deliver(self, sid: int, subject: bytes, reply: bytes, payload: bytes, block: bytes) -> None:
        self.heard.append((subject, sid, reply, payload, block))

    async def _process_err(self, err_msg: str) -> None:
        self.heard.append(err_msg)
        self.is_connected = "permissions" in err_msg

    async def _process_ping(self) -> None:
        self.heard.append("PING")

    async def _process_pong(self) -> None:
        self.heard.append("PONG")

    async def _process_info(self, info: dict[str, Any]) -> None:
        self.heard.append(info)


def parsed(*pieces: bytes) -> list[Any]:
    recorder = Recorder()
    parser = Parser(recorder)

    async def feed() -> None:
        for piece in pieces:
            await parser.parse(piece)

    asyncio.run(feed())
    return recorder.heard


def written(frame: Frame) -> bytes:
    """The message in the server's protocol."""
    subject, sid, reply, payload, block = frame
    names = b" ".join([subject, str(sid).encode(), *([reply] if reply else [])])
    if block:
        size = len(block) + len(payload)
        return b"HMSG %b %d %d\r\n%b%b\r\n" % (names, len(block), size, block, payload)
    return b"MSG %b %d\r\n%b\r\n" % (names, len(payload), payload)


@given(st.lists(FRAME, max_size=6), st.lists(st.integers(0, 600), max_size=6))
def test_messages_of_any_bytes_come_whole_however_the_pieces_are_cut(
    frames: list[Frame], cuts: list[int]
) -> None:
    wire = b"PING\r\n".join([b"", *map(written, frames), b""])
    places = sorted({0, len(wire), *(min(cut, len(wire)) for cut in cuts)})
    pieces = [wire[begin:end] for begin, end in itertools.pairwise(places)]

    heard = parsed(*pieces)

    assert [each for each in heard if each != "PING"] == frames
    assert heard.count("PING") == len(frames) + 1


@pytest.mark.parametrize("space", [b"\x0b", b"\x0c", b"\x85", b"\xa0", b"\x00", b"\x1c"])
def test_only_the_protocols_own_spaces_end_a_subject(space: bytes) -> None:
    frame = (b"a" + space + b"1", 7, b"r" + space + b"2", b"x", b"")

    assert parsed(written(frame)) == [frame]


def test_a_large_message_comes_whole_out_of_many_pieces() -> None:
    frame = (b"a", 1, b"", bytes(range(256)) * 20_000, b"NATS/1.0\r\n\r\n")
    wire = written(frame) + b"PONG\r\n"

    heard = parsed(*(wire[at : at + 65_536] for at in range(0, len(wire), 65_536)))

    assert heard == [frame, "PONG"]


def test_what_follows_an_error_on_the_same_connection_is_void() -> None:
    assert parsed(
        b"-ERR 'Slow Consumer'\r\nPING\r\n",
    ) == ["slow consumer"]
    denied = b"-ERR 'Permissions Violation for Publish to \"a\"'\r\nPING\r\n"
    assert parsed(denied)[1:] == ["PING"]
    assert parsed(b"-ERR\r\n") == [""]
    assert parsed(b"-ERR '\xff'\r\n") == ["\ufffd"]


@pytest.mark.parametrize(
    "line",
    [
        b"MSG a x 1\r\n", b"MSG a\r\n", b"HMSG a 1 x 1\r\n",
        b"INFO {\r\n", b"INFO []\r\n", b"HELLO\r\n", b"\r\n", b"x" * (LONGEST_LINE_BYTES + 1),
    ],
)  # fmt: skip
def test_what_no_server_says_is_an_error_of_the_protocol(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        parsed(line)


def test_headers_are_read_as_they_were_sent() -> None:
    lines = [b"NATS/1.0", b"A: 1", b"B:two: three", b"C:\t x ", b"A: 2", b"D:"]
    block = b"\r\n".join([*lines, b"\xc3\xbc: \xff\xc3\xbc", b"", b""])

    assert read_headers(block) == {
        "A": "2", "B": "two: three", "C": "x", "D": "", "ü": "\udcffü",
    }  # fmt: skip
    assert read_headers(b"NATS/1.0\r\n\r\n") == {}


@pytest.mark.parametrize(
    ("block", "headers"),
    [
        (b"NATS/1.0 503\r\n\r\n", {"Status": "503"}),
        (b"NATS/1.0 404 No Messages\r\n\r\n", {"Status": "404", "Description": "No Messages"}),
        (
            b"NATS/1.0 408 Request Timeout\r\nNats-Pending-Messages: 5\r\n\r\n",
            {"Status": "408", "Description": "Request Timeout", "Nats-Pending-Messages": "5"},
        ),
        (b"NATS/1.0 \xff\xff\xff\r\n\r\n", {}),
    ],
)
def test_a_status_line_is_read(block: bytes, headers: dict[str, str]) -> None:
    assert read_headers(block) == headers


@pytest.mark.parametrize(
    "block",
    [
        b"\x00", b"N", b"NATS/1.0x\r\n\r\n", b"NATS/1.0\nA: b\n\n", b"HTTP/1.1\r\nA: b\r\n\r\n",
        b"NATS/1.0\r\nno colon\r\n\r\n", b"NATS/1.0\r\n: no name\r\n\r\n", b"\xff" * 100,
    ],
)  # fmt: skip
def test_what_is_no_block_of_headers_is_refused(block: bytes) -> None:
    with pytest.raises(HeaderError, match="its headers"):
        read_headers(block)


@given(st.binary(max_size=200))
def test_reading_headers_raises_nothing_else(block: bytes) -> None:
    for each in (block, b"NATS/1.0" + block, b"NATS/1.0\r\n" + block):
        try:
            headers = read_headers(each)
        except HeaderError:
            continue
        assert all(isinstance(text, str) for item in headers.items() for text in item)
