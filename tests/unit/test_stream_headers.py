import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.broker import headers
from runtime.message import Message

names = st.text(st.characters(codec="utf-8", exclude_characters="\r\n:"), min_size=1, max_size=40)
values = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@given(st.dictionaries(names, values, max_size=8))
def test_shielded_headers_come_back_as_they_were(original: dict[str, str]) -> None:
    shielded = headers.shield(original)

    assert headers.unshield(shielded) == original


@given(st.dictionaries(names, values, max_size=8))
def test_shielded_headers_can_be_sent_and_none_of_them_acts(original: dict[str, str]) -> None:
    for name, value in headers.shield(original).items():
        assert not name.lower().startswith("nats-")
        assert name.isascii()
        assert not any(character.isspace() for character in name)
        assert value == value.strip() or name.startswith("Runtime-")
        assert value.isascii()
        assert "\n" not in value
        assert "\r" not in value


@pytest.mark.parametrize(
    "name", ["Nats-Msg-Id", "nats-rollup", "Nats-TTL", "Nats-Schedule", "Runtime-Stream"]
)
def test_a_header_that_would_act_on_a_copy_travels_under_a_prefix(name: str) -> None:
    assert headers.shield({name: "x"}) == {f"Runtime-Original-{name}": "x"}


def test_an_ordinary_header_stays_as_it_is() -> None:
    assert headers.shield({"Content-Type": "text/plain; a=\\b"}) == {
        "Content-Type": "text/plain; a=\\b"
    }


def test_a_copy_leads_back_to_the_message_it_was_made_of() -> None:
    message = Message(
        "jobs.é", b"x", {"A": "b", "Nats-Msg-Id": "1"}, "", "JOBS", 7, 3, 1_700_000_000_000_000_001
    )
    copy = Message(
        "mailbox.ready.f", b"x", headers.origin_headers(message), "$JS.ACK", "MAILBOX", 1
    )

    origin = headers.original(copy)

    assert origin is not None
    assert (origin.stream, origin.sequence, origin.subject) == ("JOBS", 7, "jobs.é")
    assert origin.stored_at_ns == message.stored_at_ns
    assert origin.headers == message.headers
    assert origin.reply == "$JS.ACK"


@pytest.mark.parametrize(
    "forged", [{}, {"Runtime-Stream": "S"}, {"Runtime-Stream": "S", "Runtime-Sequence": "-1"}]
)
def test_a_message_without_an_origin_is_no_copy(forged: dict[str, str]) -> None:
    assert headers.original(Message("a", b"", forged)) is None


@pytest.mark.parametrize("value", ["", "-1", "1.5", "abc", "²", "9" * 30])
def test_a_header_that_is_no_number_counts_as_zero(value: str) -> None:
    assert headers.number({"N": value}, "N") == 0


@given(values)
def test_an_escaped_value_is_read_back(value: str) -> None:
    assert headers.unescape(headers.escape(value)) == value


@pytest.mark.parametrize("value", ["\\q", "\\", "\\u12", "\\Uffffffff", "\\x", "é"])
def test_a_value_that_nobody_escaped_is_read_as_it_is(value: str) -> None:
    assert headers.unescape(value) == value


@given(values.filter(lambda value: len(headers.escape(value)) > 20))
def test_a_cut_value_is_a_beginning_of_the_whole_one(value: str) -> None:
    cut = headers.escape(value, 20)

    assert len(cut) <= 20
    assert value.startswith(headers.unescape(cut).removesuffix("..."))
