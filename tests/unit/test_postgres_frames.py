"""The lengths of a PostgreSQL server's messages."""

import struct

import pytest

from functions.outbound.transport.postgres_frames import PostgresFrames


def message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", 4 + len(body)) + body


SOUND = message(b"R", b"\0\0\0\0") + message(b"1", b"") + message(b"S", b"a" * 1000) * 3


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 1000, len(SOUND)])
def test_sound_messages_pass_in_whatever_pieces_they_come(size: int) -> None:
    frames = PostgresFrames()
    pieces = [SOUND[at : at + size] for at in range(0, len(SOUND), size)]
    assert all(frames.accept(piece) for piece in pieces)


@pytest.mark.parametrize("length", [0, 3, -1, -(2**31)])
@pytest.mark.parametrize("size", [1, 1000])
def test_a_message_shorter_than_its_own_length_does_not_pass(length: int, size: int) -> None:
    frames = PostgresFrames()
    sent = message(b"1", b"") + b"S" + struct.pack("!i", length)
    pieces = [sent[at : at + size] for at in range(0, len(sent), size)]
    assert [frames.accept(piece) for piece in pieces][-1] is False
