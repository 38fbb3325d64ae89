"""Pages end at their limit, and before they are larger than a message may be."""

from pydantic import BaseModel

from functions.domain.paging import PAGE_BYTES, as_integer, cut, read_cursor


class Item(BaseModel):
    n: int
    text: str = ""


def numbers(items: list[Item], limit: int) -> tuple[list[int], int | None]:
    """The items of the page, and the item that its cursor names."""
    page = cut(items, limit, lambda item: (item.n,))
    [after] = read_cursor(page.next_cursor, as_integer)
    return [item.n for item in page.items], after


def test_a_page_has_its_limit_and_names_its_last_item() -> None:
    items = [Item(n=n) for n in range(4)]
    assert numbers(items, 3) == ([0, 1, 2], 2)
    assert numbers(items[:3], 3) == ([0, 1, 2], None)
    assert numbers([], 3) == ([], None)


def test_a_page_is_measured_in_bytes() -> None:
    quarter = "é" * (PAGE_BYTES // 8 - 100)
    items = [Item(n=n, text=quarter) for n in range(6)]
    assert numbers(items, 500) == ([0, 1, 2, 3], 3)
    assert numbers(items[4:], 500) == ([4, 5], None)


def test_an_item_that_is_too_large_is_a_page_of_its_own() -> None:
    items = [Item(n=0), Item(n=1, text="x" * PAGE_BYTES), Item(n=2)]
    assert numbers(items, 500) == ([0], 0)
    assert numbers(items[1:], 500) == ([1], 1)
    assert numbers(items[2:], 500) == ([2], None)
