"""Any value that a function hands the host becomes text and numbers that can be sent."""

import math
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from runtime.safe_text import (
    DELAY_CAP_S,
    describe,
    line_of,
    seconds_of,
    status_of,
    text_of,
)


class BrokenText:
    def __str__(self) -> str:
        raise KeyboardInterrupt


class TextSubclass(str):
    __slots__ = ()

    def __str__(self) -> str:
        raise RuntimeError

    def __getitem__(self, key: Any) -> Any:
        raise RuntimeError


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", "plain"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("a\r\nb", "a\nb"),
        ("\x00\x1b[31m", "\\x00\\x1b[31m"),
        ("half \ud800 of a pair", "half \\ud800 of a pair"),
        (b"bytes", "b'bytes'"),
        (None, "None"),
        (17, "17"),
        ("ü€😀", "ü€😀"),
        (BrokenText(), "(a text that cannot be read)"),
        (TextSubclass("x"), "(a text that cannot be read)"),
    ],
)
def test_any_value_becomes_text_that_can_be_sent(value: object, text: str) -> None:
    found = text_of(value)

    assert found == text
    assert type(found) is str
    found.encode()


def test_ten_megabytes_of_text_are_cut_and_the_cut_is_marked() -> None:
    assert text_of("x" * 10_000_000, 100) == "x" * 99 + "…"
    assert len(text_of("\x00" * 10_000_000, 100)) == 100


def test_a_code_is_one_line() -> None:
    assert line_of(" BAD\nCODE\r\n ") == "BAD CODE"


class _Login(BaseModel):
    user: int


def test_a_validation_error_is_told_without_the_value() -> None:
    with pytest.raises(ValidationError) as raised:
        _Login.model_validate({"user": "hunter2"})

    told = describe(raised.value)

    assert told.startswith("_Login: user: Input should be a valid integer")
    assert "hunter2" not in told


def test_an_exception_without_a_text_is_told_by_its_name() -> None:
    assert describe(ValueError()) == "ValueError"


@pytest.mark.parametrize(
    ("delay", "seconds"),
    [
        (7, 7.0),
        (0.5, 0.5),
        (-1, 0.0),
        (-math.inf, 0.0),
        (math.inf, DELAY_CAP_S),
        (1e12, DELAY_CAP_S),
        (10**400, DELAY_CAP_S),
        (-(10**400), 0.0),
        (Decimal("1.5"), 1.5),
        (Decimal("1e9999999"), DELAY_CAP_S),
        (Fraction(1, 2), 0.5),
        (timedelta(minutes=5), 300.0),
        (timedelta.max, DELAY_CAP_S),
        (math.nan, None),
        (Decimal("NaN"), None),
        (Decimal("sNaN"), None),
        (True, None),
        ("5", None),
        (None, None),
        ([5], None),
        (1j, None),
    ],
)
def test_a_delay_is_bounded_or_is_none(delay: object, seconds: float | None) -> None:
    assert seconds_of(delay) == seconds


@pytest.mark.parametrize(
    ("status", "used"),
    [(404, 404), (503, 503), (200, 400), (0, 400), ("404", 400), (None, 400), (True, 400)],
)
def test_a_status_that_is_no_error_s_is_400(status: object, used: int) -> None:
    assert status_of(status) == used
