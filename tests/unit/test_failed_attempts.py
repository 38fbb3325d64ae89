"""How often an address may fail to prove an identity."""

import pytest
import structlog

from functions.domain.failed_attempts import FailedAttempts
from functions.domain.source_addresses import is_in, read_networks, source_name

PUBLIC = "203.0.113.7"


def exhausted(source: str, shared: str = "private") -> FailedAttempts:
    """After failures of the address for many devices, before which device `known` passed."""
    attempts = FailedAttempts(structlog.stdlib.get_logger(), "device", read_networks(shared))
    attempts.succeed(source, "known's proof")
    for number in range(100):
        attempts.fail(source, f"device {number}")
    return attempts


def test_an_address_that_failed_for_many_may_not_try_another() -> None:
    attempts = exhausted(PUBLIC)

    assert not attempts.may_try(PUBLIC, "never tried", "proof")
    assert attempts.may_try(PUBLIC, "known", "known's proof")
    assert attempts.may_try("203.0.113.8", "never tried", "proof")


@pytest.mark.parametrize("source", ["127.0.0.1", "10.1.2.3", "fd00::/64", "::1"])
def test_who_guesses_behind_a_shared_address_locks_nobody_out(source: str) -> None:
    attempts = exhausted(source)

    assert attempts.may_try(source, "never tried", "proof")
    for _ in range(10):
        attempts.fail(source, "guessed")
    assert not attempts.may_try(source, "guessed", "proof")


def test_a_network_can_be_named_as_shared_and_private_ones_left_out() -> None:
    assert exhausted(PUBLIC, "private, 203.0.113.0/24").may_try(PUBLIC, "x", "proof")
    assert not exhausted("127.0.0.1", "").may_try("127.0.0.1", "x", "proof")


def test_a_sender_that_names_nobody_uses_nothing_up() -> None:
    attempts = FailedAttempts(structlog.stdlib.get_logger(), "device")
    for _ in range(100):
        attempts.note(PUBLIC)

    assert attempts.may_try(PUBLIC, "d", "proof")


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("::1", "::1"),
        ("", "unknown"),
        ("nonsense", "unknown"),
        ("1" * 100_000, "unknown"),
    ],
)
def test_a_source_is_an_address_or_a_network_of_one_host(written: str, name: str) -> None:
    assert source_name(written) == name


def test_what_is_no_address_is_in_no_network() -> None:
    assert not is_in("unknown", read_networks("private, 0.0.0.0/0, ::/0"))
    with pytest.raises(ValueError, match="nowhere"):
        read_networks("private, nowhere")
