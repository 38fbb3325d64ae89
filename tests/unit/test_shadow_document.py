"""Compares the shadow document with a plain recursive merge, for generated updates."""

from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.domain.values import same_json
from functions.shadow.document import MAX_DEPTH, InvalidDocument, check_patch, delta, pick
from functions.shadow.section import MAX_REMEMBERED_BYTES, Section, read_pointers

KEYS = st.sampled_from(["a", "b", "c"])
LEAVES = st.one_of(st.integers(0, 3), st.booleans(), st.lists(st.integers(0, 2), max_size=2))
PATCHES = st.recursive(
    st.one_of(LEAVES, st.none()),
    lambda inner: st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)
UPDATES = st.lists(
    st.one_of(st.none(), st.dictionaries(KEYS, PATCHES, max_size=3)), min_size=1, max_size=6
)
STATES = st.dictionaries(
    KEYS,
    st.recursive(LEAVES, lambda inner: st.dictionaries(KEYS, inner, min_size=1), max_leaves=6),
    max_size=3,
)


def plain_merge(state: dict[str, Any], patch: object) -> dict[str, Any]:
    """The definition of a merge, leaf by leaf and in order; the code under test must agree."""
    for path, value in _leaves(patch):
        state = _put(state, path, value)
    return state


def _leaves(patch: object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    if isinstance(patch, dict):
        for key, value in patch.items():
            yield from _leaves(value, (*path, key))
    else:
        yield path, patch


def _put(state: dict[str, Any], path: tuple[str, ...], value: object) -> dict[str, Any]:
    if not path:
        return {}
    key, rest = path[0], path[1:]
    below = state.get(key)
    if not rest:
        replaced = {} if value is None else {key: value}
    elif isinstance(below, dict) or value is not None:
        nested = _put(below if isinstance(below, dict) else {}, rest, value)
        replaced = {key: nested} if nested else {}
    else:
        return state
    return {other: kept for other, kept in state.items() if other != key} | replaced


def merged(updates: list[Any], order: list[int]) -> Section:
    section = Section()
    for place in order:
        section.merge(updates[place], stamp=place + 1)
    return section


@given(UPDATES)
def test_updates_in_order_merge_like_a_plain_recursive_merge(updates: list[Any]) -> None:
    expected: dict[str, Any] = {}
    for patch in updates:
        expected = plain_merge(expected, patch)
    assert same_json(merged(updates, list(range(len(updates)))).state(), expected)


@given(UPDATES, st.data())
def test_any_order_of_the_same_updates_gives_the_same_document(
    updates: list[Any], data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(updates))))
    in_order = merged(updates, list(range(len(updates))))
    shuffled = merged(updates, list(order))
    assert same_json(shuffled.state(), in_order.state())
    assert shuffled.metadata() == in_order.metadata()


@given(UPDATES, st.data())
def test_an_update_that_comes_again_changes_nothing(
    updates: list[Any], data: st.DataObject
) -> None:
    order = list(range(len(updates)))
    repeated = order + data.draw(st.lists(st.sampled_from(order), max_size=6))
    assert same_json(merged(updates, repeated).state(), merged(updates, order).state())


@given(STATES, STATES)
def test_a_delta_holds_just_what_brings_the_device_to_the_desired_state(
    desired: dict[str, Any], reported: dict[str, Any]
) -> None:
    section = Section()
    section.merge(reported, 1)
    section.merge(delta(desired, reported), 2)
    assert delta(desired, section.state()) == {}


@given(STATES)
def test_there_is_no_delta_between_a_state_and_itself(state: dict[str, Any]) -> None:
    assert delta(state, state) == {}


@pytest.mark.parametrize(
    ("desired", "reported", "expected"),
    [
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}, {"a": {"c": 2}}),
        ({"a": 1}, {"a": 1, "b": 2}, {}),
        ({"a": [1, 2]}, {"a": [1, 3]}, {"a": [1, 2]}),
        ({"a": True}, {"a": 1}, {"a": True}),
        ({"a": 1}, {"a": 1.0}, {}),
        ({"a": {"b": 1}}, {"a": 5}, {"a": {"b": 1}}),
        ({"a": 5}, {"a": {"b": 1}}, {"a": 5}),
    ],
)
def test_a_delta_names_full_paths_and_leaves_out_what_only_the_device_reports(
    desired: dict[str, Any], reported: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert same_json(delta(desired, reported), expected)


def test_metadata_has_the_second_at_which_each_leaf_was_written() -> None:
    section = Section()
    section.merge({"a": {"b": 1, "c": 2}}, 5_000_000_000)
    section.merge({"a": {"c": 3}}, 7_900_000_000)
    assert section.metadata() == {"a": {"b": {"timestamp": 5}, "c": {"timestamp": 7}}}
    assert pick(section.metadata(), {"a": {"c": 3}}) == {"a": {"c": {"timestamp": 7}}}


def test_a_late_message_fills_what_no_newer_one_has_written_and_nothing_else() -> None:
    section = Section()
    section.merge({"temp": 22, "mode": None}, 20)
    section.merge({"temp": 21, "mode": "eco", "fan": 1}, 10)
    assert section.state() == {"temp": 22, "fan": 1}


def size_of(section: Section) -> int:
    """The bytes of a section's stamps as they are stored."""
    return len(orjson.dumps(section.stamps))


@pytest.mark.parametrize("key_length", [3, 128])
@pytest.mark.parametrize("depth", [1, MAX_DEPTH])
def test_the_memory_of_deleted_keys_is_bounded_in_bytes(key_length: int, depth: int) -> None:
    def nested(number: int, value: object) -> Any:
        for level in range(depth):
            value = {f"{number}-{level}".ljust(key_length, "é"): value}
        return value

    section = Section()
    for number in range(1, 1500):
        section.merge(nested(number, 1) | nested(number - 1, None), number)
    assert section.state() == nested(1499, 1)
    # The newest are remembered.
    section.merge(nested(1498, 1), 1497)
    assert section.state() == nested(1499, 1)
    assert size_of(section) < 2 * MAX_REMEMBERED_BYTES


def test_the_stamps_of_values_share_the_keys_around_them() -> None:
    values: Any = {f"{number:x}": 0 for number in range(3000)}
    for _ in range(MAX_DEPTH - 1):
        values = {"k" * 128: values}
    section = Section()
    section.merge(values, 1_790_000_000_000_000_000)
    # With a whole path for each value they had 3 MB.
    assert size_of(section) < 5 * len(orjson.dumps(values))


@given(UPDATES, st.data())
def test_what_is_stored_and_read_between_updates_gives_the_same(
    updates: list[Any], data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(updates))))
    stored = Section()
    for place in order:
        before = stored.state()
        kept = orjson.dumps(before)
        stored.merge(updates[place], stamp=place + 1)
        # A document of before an update stays as it was.
        assert orjson.dumps(before) == kept
        texts = orjson.dumps(stored.state()), orjson.dumps(stored.stamps)
        stored = Section(*map(orjson.loads, texts))
    at_once = merged(updates, list(order))
    assert same_json(stored.state(), at_once.state())
    assert stored.metadata() == at_once.metadata()


def test_stamps_that_were_stored_as_pointers_count_as_before() -> None:
    written = {"/a~1b": 50, "/gone": 70, "/o": 30, "/o/x~0": 40}
    section = Section({"a/b": 1, "o": {"x~": 2}}, read_pointers(written, {"": 50, "/o": 45}))
    section.merge({"a/b": 9, "gone": 9, "o": {"x~": 9, "y": 3}}, 35)
    assert section.state() == {"a/b": 1, "o": {"x~": 2, "y": 3}}
    # A newer value was written beneath it.
    section.merge({"o": 9}, 44)
    assert section.state() == {"a/b": 1}
    section.merge({"o": 9, "a/b": 2}, 60)
    assert section.state() == {"a/b": 2, "o": 9}


@pytest.mark.parametrize(
    "patch",
    [
        [1],
        "text",
        3,
        {"a": [1, None]},
        {"a": [{"b": None}]},
        {"": 1},
        {"k" * 129: 1},
        {"a\x00b": 1},
        {"a": "b\x00"},
        {"a": ["\x00"]},
        {"a": {"a": {"a": {"a": {"a": {"a": {"a": {"a": {"a": 1}}}}}}}}},
    ],
)
def test_what_no_section_can_hold_is_refused(patch: object) -> None:
    with pytest.raises(InvalidDocument):
        check_patch(patch)


@given(STATES)
def test_an_ordinary_state_is_allowed(state: dict[str, Any]) -> None:
    check_patch(state)
    check_patch(None)


class CountingKey(str):
    """A key that counts how often it is compared with another object."""

    __slots__ = ()
    comparisons = 0
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        CountingKey.comparisons += 1
        return str.__eq__(self, other)


def test_the_time_of_a_merge_grows_with_its_size_and_not_with_its_square() -> None:
    keys = [CountingKey(f"k{number}") for number in range(500)]
    section = Section()
    section.merge(dict.fromkeys(keys, 0), 1)
    section.merge({key: {"a": 0} for key in keys}, 2)
    section.merge(dict.fromkeys(keys, 1), 3)
    assert section.state() == dict.fromkeys(keys, 1)
    # A search of all leaves for each key would be 250,000 comparisons.
    assert CountingKey.comparisons < 50_000
