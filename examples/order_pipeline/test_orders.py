import pytest
from orders import is_next


@pytest.mark.parametrize(
    ("last", "step", "expected"),
    [
        (None, "placed", True),
        ("placed", "paid", True),
        ("paid", "shipped", True),
        (None, "paid", False),
        ("placed", "placed", False),
        ("placed", "shipped", False),
        ("shipped", "paid", False),
    ],
)
def test_a_step_follows_the_one_before(last: str | None, step: str, expected: bool) -> None:
    assert is_next(last, step) == expected
