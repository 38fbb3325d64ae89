"""The line in which messages wait where they have keys: whose turn it is, without a clock."""

import json
import random
from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.binding.flow.bucket import Bucket
from runtime.binding.flow.keys import LONGEST, NO_KEY, key_of
from runtime.binding.flow.line import Awaited, KeyedLine
from runtime.manifest.model import KeySpec
from runtime.message import Message


def _message(sequence: int, subject: str = "s.a.k", data: bytes = b"") -> Message:
    return Message(subject, data, stream="S", sequence=sequence)


def _fair(most_running: int | None = None) -> KeyedLine:
    return KeyedLine(key_of(KeySpec(token=2)), most_running=most_running)


def _ordered(bucket: Bucket | None = None) -> KeyedLine:
    by_tenant, by_key = key_of(KeySpec(token=2)), key_of(KeySpec(token=3))
    return KeyedLine(by_tenant, order_key=by_key, bucket=bucket)


def _fill(line: KeyedLine, *subjects: str) -> list[Message]:
    messages = [_message(number, subject) for number, subject in enumerate(subjects, 1)]
    for message in messages:
        line.append(message)
    return messages


def _take_all(line: KeyedLine) -> list[int]:
    taken = []
    while line:
        taken.append(line.popleft().sequence)
    return taken


def test_keys_take_turns_however_many_messages_each_has() -> None:
    line = _fair()
    _fill(line, *["s.loud"] * 6, "s.quiet", "s.calm")

    assert len(line) == 8
    assert _take_all(line) == [1, 7, 8, 2, 3, 4, 5, 6]
    assert len(line) == 0


def test_one_key_leaves_room_for_the_others() -> None:
    line = _fair(most_running=2)
    messages = _fill(line, *["s.loud"] * 4)

    assert _take_all(line) == [1, 2]
    line.append(_message(9, "s.quiet"))
    assert _take_all(line) == [9]
    line.release(messages[0])
    assert _take_all(line) == [3]


def test_of_a_key_of_the_order_the_next_comes_when_the_one_before_is_released() -> None:
    line = _ordered()
    first, *_ = _fill(line, "s.t.one", "s.t.one", "s.t.two")

    assert (len(line), _take_all(line)) == (2, [1, 3])
    line.release(first)
    assert _take_all(line) == [2]


def test_a_key_waits_for_the_message_that_failed_and_takes_it_first() -> None:
    line = _ordered()
    first, *_ = _fill(line, "s.t.one", "s.t.one")
    line.popleft()
    line.release(first, comes_back=True)

    assert not line
    assert line.awaited() == [Awaited("t", "one", 1)]
    line.append(_message(1, "s.t.one"))
    assert line.popleft().sequence == 1
    assert not line
    assert line.awaited() == []


def test_a_key_does_not_wait_for_ever() -> None:
    line = _ordered()
    first, *_ = _fill(line, "s.t.one", "s.t.one")
    line.popleft()
    line.release(first, comes_back=True)

    assert line.stop_awaiting(first)
    assert not line.stop_awaiting(first)
    assert _take_all(line) == [2]


def test_what_another_host_sent_back_is_waited_for() -> None:
    line = _ordered()
    _fill(line, "s.t.one", "s.t.two")
    line.await_return(Awaited("t", "one", 7))

    assert _take_all(line) == [2]
    line.append(_message(7, "s.t.one"))
    assert _take_all(line) == [1]


def test_redeliveries_stand_where_their_sequence_says() -> None:
    line = _ordered()
    for sequence in (5, 9, 3, 7):
        line.append(_message(sequence, "s.t.one"))
    taken = []
    while line:
        taken.append(line.popleft())
        line.release(taken[-1])

    assert [message.sequence for message in taken] == [3, 5, 7, 9]


def test_a_closed_line_and_one_with_enough_out_give_nothing() -> None:
    line = _ordered()
    first, *_ = _fill(line, "s.t.one", "s.t.two")
    line.is_open = False
    assert (bool(line), len(line)) == (False, 0)
    line.is_open, line.most_out = True, 1
    assert (len(line), _take_all(line)) == (1, [1])
    line.release(first)
    assert _take_all(line) == [2]


def test_a_bucket_holds_the_line_back_and_says_for_how_long() -> None:
    now_s = 100.0
    line = _ordered(Bucket(10, 1, lambda: now_s))
    _fill(line, "s.t.one", "s.t.two")

    assert (len(line), _take_all(line)) == (1, [1])
    assert line.next_in_s() == pytest.approx(0.1)
    now_s += 0.11
    assert _take_all(line) == [2]
    assert line.next_in_s() is None


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("klm")), max_size=40),
    st.randoms(use_true_random=False),
)
def test_whatever_is_released_when_each_key_is_in_order_and_nothing_is_left_or_kept(
    keys: list[tuple[str, str]], chance: random.Random
) -> None:
    line = _ordered()
    messages = _fill(line, *[f"s.{tenant}.{key}" for tenant, key in keys])
    out: list[Message] = []
    done: dict[str, list[int]] = defaultdict(list)
    while line or out:
        if line and (not out or chance.random() < 0.6):
            out.append(line.popleft())
            assert max(Counter(message.subject for message in out).values()) == 1
        else:
            message = out.pop(chance.randrange(len(out)))
            done[message.subject].append(message.sequence)
            line.release(message)

    assert all(sequences == sorted(sequences) for sequences in done.values())
    assert sum(map(len, done.values())) == len(messages)
    assert (line.waiting, line.groups, line.is_idle) == (0, 0, True)


@pytest.mark.parametrize(
    ("field", "data", "key"),
    [
        ("id", b'{"id": "d1"}', "d1"),
        ("id", b'{"id": 7}', "7"),
        ("id", b'{"id": "7"}', "7"),
        ("device.id", b'{"device": {"id": "d1"}}', "d1"),
        ("id", b'{"id": null}', "null"),
        ("id", b"{}", NO_KEY),
        ("id", b"[1]", NO_KEY),
        ("device.id", b'{"device": 3}', NO_KEY),
        ("id", b"no JSON", NO_KEY),
        ("id", b"", NO_KEY),
    ],
)
def test_a_key_is_what_the_field_holds(field: str, data: bytes, key: str) -> None:
    assert key_of(KeySpec(field=field))(_message(1, data=data)) == key


def test_a_long_key_is_kept_short_and_apart_from_others() -> None:
    key = key_of(KeySpec(field="id"))
    keys = {key(_message(1, data=b'{"id": "%s"}' % (b"x" * 5000 + end))) for end in (b"1", b"2")}

    assert len(keys) == 2
    assert max(map(len, keys)) <= LONGEST


@pytest.mark.parametrize("text", ["\U0001f600" * LONGEST, "\x00" * LONGEST, '"' * LONGEST])
def test_a_key_never_takes_much_room_in_the_record_of_a_lease(text: str) -> None:
    data = json.dumps({"id": text}).encode()
    for spec, message in (
        (KeySpec(field="id"), _message(1, data=data)),
        (KeySpec(token=3), _message(1, f"s.t.{text}")),
    ):
        assert len(json.dumps(key_of(spec)(message))) <= 2 * LONGEST + 2


def test_a_subject_without_that_part_has_no_key() -> None:
    assert key_of(KeySpec(token=3))(_message(1, "s.a")) == NO_KEY


def test_the_newest_that_may_go_need_not_wait_any_more() -> None:
    line = _ordered()
    _fill(line, "s.loud.one", "s.loud.two", "s.calm.one", "s.loud.one", "s.loud.two", "s.loud.six")

    gone = line.take_back("loud", 2, lambda message: message.sequence != 4)

    assert [message.sequence for message in gone] == [5, 6]
    assert (line.waiting, line.waiting_of("loud"), line.waiting_of("calm")) == (4, 3, 1)
    assert _take_all(line) == [1, 3, 2]
    assert line.take_back("nobody", 0, lambda _: True) == []
