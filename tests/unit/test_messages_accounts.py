"""Which provider account sends a message, and what happens when one fails."""

import pytest

from functions.messages.account_health import FAILURES, LONGEST_PAUSE_S, PAUSE_S, AccountHealth
from functions.messages.accounts import Account, Recipient, candidates, most_specific


def account(name: str, tenant: str | None = None, *regions: str, rank: int = 100) -> Account:
    return Account(name, "sms", tenant, regions, rank)


ACCOUNTS = [
    account("world"),
    account("europe", None, "+43", "+49"),
    account("vienna", None, "+431"),
    account("backup", rank=200),
    account("eu-west", None, "eu-west"),
    account("acme", "acme", rank=50),
    account("acme-us", "acme", "+1"),
]


@pytest.mark.parametrize(
    ("recipient", "expected"),
    [
        (Recipient("any", number="+8112"), ["world", "backup"]),
        (Recipient("any", number="+49301"), ["europe", "world", "backup"]),
        (Recipient("any", number="+43123"), ["vienna", "europe", "world", "backup"]),
        (Recipient("any", "eu-west", "+431"), ["eu-west", "vienna", "europe", "world", "backup"]),
        (Recipient("any", "us-east"), ["world", "backup"]),
        (Recipient("acme", number="+4312"), ["acme"]),
        (Recipient("acme", number="+12125550100"), ["acme-us", "acme"]),
    ],
)
def test_tenant_then_region_then_rank_choose_the_account(
    recipient: Recipient, expected: list[str]
) -> None:
    assert [each.name for each in candidates(ACCOUNTS, recipient)] == expected


def test_an_account_of_one_tenant_never_sends_for_another() -> None:
    only = [account("acme", "acme"), account("acme-us", "acme", "+1")]

    assert candidates(only, Recipient("other", number="+1212")) == []


def test_only_the_most_specific_rows_apply() -> None:
    rows = [account("all"), account("tenant", "acme"), account("region", "acme", "+43")]

    def names(recipient: Recipient) -> list[str]:
        return [each.name for each in most_specific(rows, recipient)]

    assert names(Recipient("acme", number="+431")) == ["region"]
    assert names(Recipient("acme", number="+1")) == ["tenant"]
    assert names(Recipient("other", number="+431")) == ["all"]


@pytest.mark.parametrize(
    ("sender", "allowed"),
    [
        ("Noreply@Example.com", True),
        ("anyone@shop.example", True),
        ("anyone@sub.shop.example", False),
        ("other@example.com", False),
        ("+4312345", True),
        ("+43123456", False),
    ],
)
def test_a_message_states_only_a_sender_that_the_account_allows(
    sender: str, *, allowed: bool
) -> None:
    senders = ("noreply@example.com", "@shop.example", "+4312345")

    assert Account("a", "email", senders=senders).allows_sender(sender) is allowed
    assert Account("a", "email", senders=("*",)).allows_sender(sender)
    assert not Account("a", "email").allows_sender(sender)


def test_a_broken_account_is_paused_at_once_and_another_after_some_failures() -> None:
    health = AccountHealth()
    health.end("broken", "broken", 0.0)
    for _ in range(FAILURES - 1):
        health.end("failing", "failed", 0.0)

    assert health.wait_s("broken", 0.0) == PAUSE_S
    assert health.wait_s("failing", 0.0) == 0.0
    health.end("failing", "failed", 1.0)
    assert health.wait_s("failing", 1.0) == PAUSE_S


def test_a_success_in_between_forgets_the_failures() -> None:
    health = AccountHealth()
    for _ in range(10):
        health.end("a", "failed", 0.0)
        health.end("a", "works", 0.0)

    assert health.wait_s("a", 0.0) == 0.0


def test_after_a_pause_one_message_tries_the_account_and_a_failure_doubles_the_pause() -> None:
    health = AccountHealth()
    health.end("a", "broken", 0.0)
    assert health.wait_s("a", PAUSE_S) == 0.0

    health.begin("a", PAUSE_S)
    assert health.wait_s("a", PAUSE_S) > 0.0
    health.end("a", "failed", PAUSE_S + 1)
    assert health.wait_s("a", PAUSE_S + 1) == 2 * PAUSE_S

    for _ in range(20):
        health.end("a", "broken", 1000.0)
    assert health.wait_s("a", 1000.0) == LONGEST_PAUSE_S
    health.end("a", "works", 1000.0)
    assert health.wait_s("a", 1000.0) == 0.0
