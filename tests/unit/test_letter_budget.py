"""Dead letters of one tenant's messages."""

import structlog
from structlog.testing import capture_logs

from functions.messages.letter_budget import LetterBudget

DAY_NS = 86_400 * 1_000_000_000


def test_a_tenant_leaves_letters_up_to_its_budget_which_comes_back_within_a_month() -> None:
    now_ns = 0
    budget = LetterBudget(structlog.get_logger(), 1_000_000, lambda: now_ns)
    with capture_logs() as logs:
        left = [budget.take("loud", 500) for _ in range(1000)]
        assert budget.take("quiet", 500)
    # Each takes a thousand bytes for its headers, too, and whole thousands.
    assert left == [True] * 500 + [False] * 500
    assert [(line["log_level"], line["tenant_id"]) for line in logs] == [("warning", "loud")]

    now_ns = 3 * DAY_NS
    assert sum(budget.take("loud", 500) for _ in range(1000)) == 50
    now_ns = 90 * DAY_NS
    assert sum(budget.take("loud", 500) for _ in range(1000)) == 500


def test_a_large_message_takes_as_much_as_it_has() -> None:
    budget = LetterBudget(structlog.get_logger(), 1_000_000, lambda: 0)
    assert budget.take("t", 600_000)
    assert not budget.take("t", 600_000)
