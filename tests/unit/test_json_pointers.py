"""Values inside a JSON document, by their pointers."""

from typing import Any

import pytest

from functions.domain.json_pointers import pointer_of, with_values

DOCUMENT: dict[str, Any] = {"a": {"b": [1, {"c/d": 2}]}, "e": 3}


def test_values_are_replaced_and_the_document_is_left_as_it_is() -> None:
    changed = with_values(DOCUMENT, {pointer_of(["a", "b", 1, "c/d"]): 9, "/a/b/0": 8})
    assert changed == {"a": {"b": [8, {"c/d": 9}]}, "e": 3}
    assert DOCUMENT == {"a": {"b": [1, {"c/d": 2}]}, "e": 3}


def test_the_empty_pointer_is_the_document_itself() -> None:
    assert with_values(DOCUMENT, {"": 1}) == 1


@pytest.mark.parametrize("pointer", ["/x/y", "/x", "/a/b/2", "/a/b/x", "/e/f", "/a/b/0/c"])
def test_a_place_that_is_not_there_is_an_error(pointer: str) -> None:
    with pytest.raises(ValueError, match="no such place"):
        with_values(DOCUMENT, {pointer: 1})
