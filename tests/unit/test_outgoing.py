import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.broker.outgoing import (
    MAX_LINE_BYTES,
    check_pattern,
    publish_command,
    settlement_commands,
)
from runtime.errors import TooLarge, Unsendable

MAX_PAYLOAD = 1_048_576
NO_SUBJECTS = [
    "", ".", "a.", ".a", "a..b", "*", "a.*", ">", "a.>", "a b", "a\tb", "a\rb", "a\nb",
    "a 0\r\n\r\nPUB b", "a\x00b", "a\x0bb", "a\x7fb",
]  # fmt: skip


@pytest.mark.parametrize("bad", [*NO_SUBJECTS, "\ud800"])
def test_what_is_no_subject_is_never_sent(bad: str) -> None:
    for subject, reply in ((bad, ""), ("fine", bad)):
        if (subject, reply) == ("fine", ""):
            continue  # No reply at all.
        with pytest.raises(Unsendable):
            publish_command(subject, reply, None, b"", MAX_PAYLOAD)


@pytest.mark.parametrize("headers", [None, {}, {"A": "b"}, {"Nats-Msg-Id": "x" * 100}])
def test_payload_and_headers_together_are_what_is_measured(headers: dict[str, str] | None) -> None:
    empty = publish_command("a", "", headers, b"", MAX_PAYLOAD)
    block = empty.split(b"\r\n", 1)[1][:-2] if headers is not None else b""
    fitting = b"x" * (MAX_PAYLOAD - len(block))

    command = publish_command("a", "", headers, fitting, MAX_PAYLOAD)
    with pytest.raises(TooLarge) as refusal:
        publish_command("a", "", headers, fitting + b"x", MAX_PAYLOAD)

    assert command.split(b"\r\n", 1)[0].endswith(b" %d" % MAX_PAYLOAD)
    assert (refusal.value.size_bytes, refusal.value.limit_bytes) == (MAX_PAYLOAD + 1, MAX_PAYLOAD)


def test_a_line_that_the_server_would_not_read_is_never_sent() -> None:
    longest = "a" * (MAX_LINE_BYTES - len("PUB  0\r\n"))

    assert publish_command(longest, "", None, b"", MAX_PAYLOAD)
    with pytest.raises(Unsendable, match="line of 4097 bytes"):
        publish_command(f"{longest}a", "", None, b"", MAX_PAYLOAD)
    half = "a" * (MAX_LINE_BYTES // 2)
    with pytest.raises(Unsendable, match="line"):
        publish_command(half, half, {"A": "b"}, b"", MAX_PAYLOAD)


@pytest.mark.parametrize("headers", [{"": "x"}, {"a b": "x"}, {"Ü": "x"}, {"a:": "x"}, {"a\n": ""}])
def test_a_header_that_nats_does_not_know_is_never_sent(headers: dict[str, str]) -> None:
    with pytest.raises(Unsendable):
        publish_command("a", "", headers, b"", MAX_PAYLOAD)


def test_a_line_break_in_a_headers_value_ends_no_line() -> None:
    command = publish_command("a", "", {"A": " x\r\nNats-Rollup: all\n"}, b"", MAX_PAYLOAD)

    assert b"\r\nA: x  Nats-Rollup: all\r\n\r\n" in command


@given(st.binary(min_size=1, max_size=50).map(lambda raw: raw.translate(None, b"\r\n\t \0.*>")))
def test_bytes_that_are_no_text_are_sent_as_they_were(raw: bytes) -> None:
    printable = bytes(byte for byte in raw if byte > 0x20 and byte != 0x7F) or b"\xff"

    command = publish_command(
        f"a.{printable.decode('utf-8', 'surrogateescape')}", "", None, b"{}", MAX_PAYLOAD
    )

    assert command == b"PUB a.%b 2\r\n{}\r\n" % printable


def test_settlements_are_made_together_and_a_bad_one_spoils_none_of_the_others() -> None:
    good = [(f"$JS.ACK.S.c.1.{n}.{n}.1764343434123456789.0", b"+ACK") for n in range(3)]
    naks = [(good[0][0], b'-NAK {"delay": 5}'), ("ack.\udcff", b"+ACK")]
    bad = [("", b"+ACK"), ("a b", b"+ACK"), ("a\r\nPUB b 0\r\n", b"+ACK"), ("x" * 5000, b"+ACK")]

    plain, none = settlement_commands(good, MAX_PAYLOAD)
    mixed, refused = settlement_commands([*bad[:2], *good, *naks, *bad[2:]], MAX_PAYLOAD)

    assert none == []
    assert plain == b"".join(b"PUB %b 4\r\n+ACK\r\n" % subject.encode() for subject, _ in good)
    assert len(refused) == len(bad)
    assert mixed == plain + (
        b'PUB %b 17\r\n-NAK {"delay": 5}\r\nPUB ack.\xff 4\r\n+ACK\r\n' % good[0][0].encode()
    )
    assert settlement_commands([], MAX_PAYLOAD) == (b"", [])


@pytest.mark.parametrize("subject", ["a", "a.*", "a.>", ">", "_INBOX.x.*", "ü.b"])
def test_patterns_can_be_subscribed_to(subject: str) -> None:
    check_pattern(subject, "q")


@pytest.mark.parametrize("subject", ["", "a b", "a\r\nPUB x 0", "a..b", ">.a", "x" * 5000])
def test_what_is_no_pattern_is_not_subscribed_to(subject: str) -> None:
    with pytest.raises(Unsendable):
        check_pattern(subject)


def test_an_error_shows_a_subject_as_a_person_can_read_it() -> None:
    refusal = Unsendable("a\r\n\x1b[31m" + "x" * 5000, "why")

    assert str(refusal).isprintable()
    assert len(str(refusal)) < 250
