"""The fair queue: the order of messages with keys, without a clock."""

import json
import random
from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.manifest.model import KeySpec
from runtime.message import Message
from runtime.queueing.fair_queue import FairQueue
from runtime.queueing.keys import LONGEST, NO_KEY, key_of
from runtime.queueing.token_bucket import TokenBucket


def _message(sequence: int, subject: str = "s.a.k", data: bytes = b"") -> Message:
    return Message(subject, data, stream="S", sequence=sequence)


def _fair(places: int | None = None) -> FairQueue:
    return FairQueue(key_of(KeySpec(token=2)), places=places)


def _ordered(token_bucket: TokenBucket | None = None) -> FairQueue:
    by_tenant, by_key = key_of(KeySpec(token=2)), key_of(KeySpec(token=3))
    return FairQueue(by_tenant, order_key=by_key, token_bucket=token_bucket)


def _fill(queue: FairQueue, *subjects: str) -> list[Message]:
    messages = [_message(number, subject) for number, subject in enumerate(subjects, 1)]
    for message in messages:
        queue.append(message)
    return messages


def _take_all(queue: FairQueue) -> list[int]:
    taken = []
    while queue:
        taken.append(queue.popleft().sequence)
    return taken


def test_keys_take_turns_however_many_messages_each_has() -> None:
    queue = _fair()
    _fill(queue, *["s.loud"] * 6, "s.quiet", "s.calm")

    assert len(queue) == 8
    assert _take_all(queue) == [1, 7, 8, 2, 3, 4, 5, 6]
    assert len(queue) == 0


def test_one_key_leaves_room_for_the_others() -> None:
    queue = _fair(places=3)
    messages = _fill(queue, *["s.loud"] * 4)

    assert _take_all(queue) == [1, 2]
    queue.append(_message(9, "s.quiet"))
    assert _take_all(queue) == [9]
    # The last call is for a key that has none.
    queue.release(messages[0])
    assert _take_all(queue) == []
    queue.release(next(message for message in queue.out if message.sequence == 9))
    assert _take_all(queue) == [3]


@pytest.mark.parametrize(
    ("slow", "each"), [(1, 768), (2, 439), (3, 308), (10, 100), (100, 11), (500, 3), (1000, 2)]
)
def test_however_many_keys_have_slow_calls_some_calls_are_free(slow: int, each: int) -> None:
    places = 1024
    queue = _fair(places)
    _fill(queue, *[f"s.slow{number % slow}" for number in range(max(20 * slow, places))])
    running = Counter[str]()
    while queue:
        running[queue.popleft().subject] += 1

    assert max(running.values()) <= each
    assert min(running.values()) >= each - 1
    assert sum(running.values()) < places
    queue.append(_message(10**6, "s.quick"))
    assert _take_all(queue) == [10**6]


def test_a_key_that_had_too_many_calls_goes_on_when_another_ones_end() -> None:
    queue = _fair(16)
    messages = _fill(queue, *["s.a"] * 20, *["s.b"] * 7)
    _take_all(queue)
    running = Counter(message.subject for message in queue.out)
    assert running == {"s.a": 7, "s.b": 7}

    for message in messages[20:]:
        queue.release(message)
        while queue:
            queue.popleft()

    assert Counter(message.subject for message in queue.out) == {"s.a": 12}


def test_with_an_order_too_a_key_leaves_calls_to_the_others() -> None:
    by_tenant, by_key = key_of(KeySpec(token=2)), key_of(KeySpec(token=3))
    queue = FairQueue(by_tenant, order_key=by_key, places=8)
    _fill(queue, *[f"s.loud.{number}" for number in range(20)])

    assert len(_take_all(queue)) == 6
    queue.append(_message(99, "s.quiet.k"))
    assert _take_all(queue) == [99]
    # More hosts make calls.
    queue.places = 16
    queue.release(next(iter(queue.out)))
    assert len(_take_all(queue)) == 7


@given(
    st.integers(1, 12),
    st.lists(st.sampled_from("abcde"), max_size=60),
    st.randoms(use_true_random=False),
)
def test_shares_of_calls_leave_no_message_behind(
    places: int, keys: list[str], chance: random.Random
) -> None:
    queue = _fair(places)
    _fill(queue, *[f"s.{key}" for key in keys])
    done = 0
    while queue or queue.out:
        if queue and len(queue.out) < places and (not queue.out or chance.random() < 0.7):
            queue.popleft()
        else:
            queue.release(chance.choice(list(queue.out)))
            done += 1

    assert done == len(keys)
    assert (queue.waiting, queue.groups, queue.is_idle) == (0, 0, True)


def test_of_a_key_of_the_order_the_next_comes_when_the_one_before_is_released() -> None:
    queue = _ordered()
    first, *_ = _fill(queue, "s.t.one", "s.t.one", "s.t.two")

    assert (len(queue), _take_all(queue)) == (2, [1, 3])
    queue.release(first)
    assert _take_all(queue) == [2]


def test_a_key_waits_for_its_failed_message_and_gives_it_first() -> None:
    queue = _ordered()
    first, second, other = _fill(queue, "s.t.one", "s.t.one", "s.t.two")
    queue.popleft()

    assert queue.delay(first) == (first, second)
    assert queue.append(_message(4, "s.t.one"))
    assert not queue.append(_message(5, "s.t.three"))
    assert _take_all(queue) == [3, 5]
    assert [each.sequence for each in queue.resume(first)] == [1, 2, 4]
    assert _take_all(queue) == [1]
    queue.release(first)
    assert _take_all(queue) == [2]
    assert other in queue.out


def test_a_message_that_comes_with_a_delay_is_not_taken_before() -> None:
    queue = _ordered()
    message, _ = _fill(queue, "s.t.one", "s.t.two")

    assert queue.delay(message) == (message,)
    assert _take_all(queue) == [2]
    assert queue.resume(message) == (message,)
    assert _take_all(queue) == [1]


def test_redeliveries_stand_where_their_sequence_says() -> None:
    queue = _ordered()
    for sequence in (5, 9, 3, 7):
        queue.append(_message(sequence, "s.t.one"))
    taken = []
    while queue:
        taken.append(queue.popleft())
        queue.release(taken[-1])

    assert [message.sequence for message in taken] == [3, 5, 7, 9]


def test_a_closed_queue_and_one_at_its_limit_give_nothing() -> None:
    queue = _ordered()
    first, *_ = _fill(queue, "s.t.one", "s.t.two")
    queue.is_open = False
    assert (bool(queue), len(queue)) == (False, 0)
    queue.is_open, queue.most_out = True, 1
    assert (len(queue), _take_all(queue)) == (1, [1])
    queue.release(first)
    assert _take_all(queue) == [2]


def test_a_bucket_holds_the_queue_back_and_says_for_how_long() -> None:
    now_s = 100.0
    queue = _ordered(TokenBucket(10, 1, lambda: now_s))
    _fill(queue, "s.t.one", "s.t.two")

    assert (len(queue), _take_all(queue)) == (1, [1])
    assert queue.next_in_s() == pytest.approx(0.1)
    now_s += 0.11
    assert _take_all(queue) == [2]
    assert queue.next_in_s() is None


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("klm")), max_size=40),
    st.randoms(use_true_random=False),
)
def test_any_order_of_releases_keeps_each_key_in_order_and_leaves_nothing(
    keys: list[tuple[str, str]], chance: random.Random
) -> None:
    queue = _ordered()
    messages = _fill(queue, *[f"s.{tenant}.{key}" for tenant, key in keys])
    out: list[Message] = []
    done: dict[str, list[int]] = defaultdict(list)
    while queue or out:
        if queue and (not out or chance.random() < 0.6):
            out.append(queue.popleft())
            assert max(Counter(message.subject for message in out).values()) == 1
        else:
            message = out.pop(chance.randrange(len(out)))
            done[message.subject].append(message.sequence)
            queue.release(message)

    assert all(sequences == sorted(sequences) for sequences in done.values())
    assert sum(map(len, done.values())) == len(messages)
    assert (queue.waiting, queue.groups, queue.is_idle) == (0, 0, True)


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
