"""What a route type may say of an attempt, whoever wrote the type."""

from typing import Any

import pytest

from functions.outbound.receipt import Receipt, bounded


def cut(receipt: object) -> Receipt:
    return bounded(receipt, excerpt_characters=10, retry_after_cap_s=60.0)


def test_a_receipt_within_the_bounds_stays_as_it_is() -> None:
    receipt = Receipt("failed", "HTTP_503", "no", status_code=503, excerpt="x", retry_after_s=5)
    assert cut(receipt) is receipt


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"code": "x" * 70}, {"code": "FAILED"}),
        ({"code": "<b>"}, {"code": "FAILED"}),
        ({"code": ""}, {"code": "FAILED"}),
        ({"reason": "r" * 1000}, {"reason": "r" * 300}),
        ({"excerpt": "e" * 1000}, {"excerpt": "e" * 10}),
        ({"excerpt": "a\0b"}, {"excerpt": "a\ufffdb"}),
        ({"excerpt": "a\ud800b"}, {"excerpt": "a?b"}),
        ({"status_code": 99_999}, {"status_code": None}),
        ({"status_code": -1}, {"status_code": None}),
        ({"retry_after_s": 1e9}, {"retry_after_s": 60.0}),
        ({"retry_after_s": -1.0}, {"retry_after_s": 0.0}),
        ({"retry_after_s": float("nan")}, {"retry_after_s": None}),
        ({"retry_after_s": float("inf")}, {"retry_after_s": None}),
    ],
)
def test_what_the_attempt_log_could_not_store_is_cut(
    given: dict[str, Any], kept: dict[str, Any]
) -> None:
    receipt = cut(Receipt("failed", **{"code": "HTTP_503", **given}))
    assert {name: getattr(receipt, name) for name in kept} == kept


def test_a_delivered_job_has_no_error_code() -> None:
    assert cut(Receipt("delivered", "ODD")).code == ""


@pytest.mark.parametrize(
    "receipt",
    [None, True, "delivered", Receipt("done"), Receipt("failed", health="ill")],  # type: ignore[arg-type]
)
def test_what_is_no_receipt_is_an_error(receipt: object) -> None:
    with pytest.raises(TypeError, match="send returned"):
        cut(receipt)


@pytest.mark.parametrize(
    ("receipt", "health"),
    [
        (Receipt("delivered"), "answered"),
        (Receipt("failed"), "failed"),
        (Receipt("refused"), "answered"),
        (Receipt("skipped"), "unknown"),
        (Receipt("failed", health="unreachable"), "unreachable"),
        (Receipt("failed", health="unconnected"), "unconnected"),
    ],
)
def test_the_outcome_says_how_the_endpoint_is_unless_the_type_does(
    receipt: Receipt, health: str
) -> None:
    assert receipt.health_of_endpoint == health
