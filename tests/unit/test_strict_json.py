import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.domain import strict_json
from functions.domain.strict_json import MAX_DEPTH, BadJson

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
KEYS = st.sampled_from(["a", "b", ":", '":', "\\", '"', "\\u003a", "a:"]) | st.text(max_size=3)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
PAIRS = st.lists(st.tuples(KEYS, st.sampled_from([1, "", ":", '"\\u0022:', '{"a":1}'])), max_size=5)


@given(value=VALUES, indent=st.sampled_from([None, 1]), ascii_only=st.booleans())
def test_whatever_json_can_say_is_read_as_it_is(
    value: Any, indent: int | None, ascii_only: bool
) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    assert strict_json.loads(text.encode()) == json.loads(text)


@given(pairs=PAIRS, before=st.sampled_from(["", " ", "\n", "\t"]), ascii_only=st.booleans())
def test_a_key_twice_is_found_however_it_is_written(
    pairs: list[tuple[str, object]], before: str, ascii_only: bool
) -> None:
    members = [
        f"{json.dumps(key, ensure_ascii=ascii_only)}{before}:{json.dumps(value)}"
        for key, value in pairs
    ]
    raw = f'{{"outer": [{{{",".join(members)}}}]}}'.encode()
    if len({key for key, _ in pairs}) == len(pairs):
        assert strict_json.loads(raw) == {"outer": [dict(pairs)]}
    else:
        with pytest.raises(BadJson, match="twice"):
            strict_json.loads(raw)


def is_exact(value: Any) -> bool:
    if isinstance(value, dict | list):
        return all(map(is_exact, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, int) or -(2**63) <= value < 2**63


LONG = st.integers(-(2**66), 2**66) | st.floats(1e17, 1e22) | st.integers().map(str)


@given(
    value=st.recursive(
        LONG | SCALARS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
        max_leaves=12,
    )
)
def test_an_integer_beyond_64_bits_is_found_among_strings_and_floats(value: Any) -> None:
    raw = json.dumps(value).encode()
    if is_exact(value):
        assert strict_json.loads(raw) == value
    else:
        with pytest.raises(BadJson, match="64 bits"):
            strict_json.loads(raw)


@given(
    texts=st.lists(st.text('\\"{}[]:u0a/', max_size=8), min_size=1, max_size=6, unique=True),
    ascii_only=st.booleans(),
)
def test_what_is_in_strings_is_not_taken_for_what_is_outside(
    texts: list[str], ascii_only: bool
) -> None:
    value = {text: [text] * MAX_DEPTH for text in texts}
    raw = json.dumps(value, ensure_ascii=ascii_only).encode()
    assert strict_json.loads(raw) == value
    again = raw[:-1] + b"," + json.dumps(texts[0]).encode() + b":1}"
    with pytest.raises(BadJson, match="twice"):
        strict_json.loads(again)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b" ",
        b"{",
        b"{'a':1}",
        b'{"a":1,}',
        b'{"a":1} x',
        b"not json",
        b"NaN",
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":-Infinity}',
        b'{"a":1e999}',
        b'{"a":-1e400}',
        b'{"a":9223372036854775808}',
        b'{"a":-9223372036854775809}',
        b'{"a":' + b"9" * 5000 + b"}",
        b'{"a":1,"a":2}',
        b'{"a" :1,"a":2}',
        b'{"a":1,"\\u0061":2}',
        b'{"a":1,"a":2,"b":"\\u003a"}',
        b'{"a":{"b":1,"b":1}}',
        b'{"a":{"b":1},"a":{"c":1}}',
        b'"\\ud800"',
        b'"\\udc00\\ud800"',
        b"\xff\xfe",
        b'"\xff"',
        b'"\xed\xa0\x80"',
        b"\xef\xbb\xbf{}",
        b'"a\x00b"',
        b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1),
        b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1),
        b"[" * 100_000 + b"]" * 100_000,
        b"[" * 100_000,
    ],
)
def test_what_parsers_disagree_about_is_refused(raw: bytes) -> None:
    with pytest.raises(BadJson) as bad:
        strict_json.loads(raw)
    assert len(bad.value.reason) < 80


@pytest.mark.parametrize(
    "raw",
    [
        b"[" * MAX_DEPTH + b"]" * MAX_DEPTH,
        b"[" + b",".join([b"[]"] * 100) + b"]",
        b'{"a":"' + b"{[" * 100 + b'"}',
        b'{"a":"\\"' + b"{[" * 100 + b'"}',
        b'{"a":9223372036854775807,"b":-9223372036854775808}',
        b'{"a":"12345678901234567890123"}',
        b'{"a":0.12345678901234567890123}',
        b'{"a":"\\u0000"}',
        b'{"a":"\\ud83d\\ude00"}',
    ],
)
def test_a_text_that_only_looks_dangerous_is_read(raw: bytes) -> None:
    assert strict_json.loads(raw) == orjson.loads(raw)
