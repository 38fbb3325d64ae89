"""The circuit breaker: when an endpoint is paused, and when it is tried again."""

from functions.route_delivery.breaker import Breaker


def broken(failures: int = 3) -> Breaker:
    breaker = Breaker(failures=3, pause_s=30.0)
    for _ in range(failures):
        breaker.failed("a", now_s=100.0)
    return breaker


def test_an_unknown_endpoint_may_be_tried() -> None:
    assert Breaker(failures=1, pause_s=30.0).wait_s("a", 0.0) == 0.0


def test_fewer_failures_than_the_limit_do_not_pause_the_endpoint() -> None:
    assert broken(failures=2).wait_s("a", 100.0) == 0.0


def test_after_the_limit_every_caller_waits_for_the_pause() -> None:
    breaker = broken()
    assert breaker.wait_s("a", 100.0) == 30.0
    assert breaker.wait_s("a", 129.0) == 1.0


def test_other_endpoints_are_not_paused() -> None:
    assert broken().wait_s("b", 100.0) == 0.0


def test_after_the_pause_one_caller_probes_while_the_others_wait() -> None:
    breaker = broken()
    assert breaker.wait_s("a", 130.0) == 0.0
    assert breaker.wait_s("a", 131.0) == 29.0


def test_a_failed_probe_begins_another_pause() -> None:
    breaker = broken()
    breaker.wait_s("a", 130.0)
    breaker.failed("a", 140.0)
    assert breaker.wait_s("a", 141.0) == 29.0


def test_a_probe_that_never_reports_back_costs_one_pause() -> None:
    breaker = broken()
    assert breaker.wait_s("a", 130.0) == 0.0
    assert breaker.wait_s("a", 160.0) == 0.0


def test_one_answer_resets_the_count_of_failures() -> None:
    breaker = broken()
    breaker.answered("a")
    assert breaker.wait_s("a", 100.0) == 0.0
    breaker.failed("a", 101.0)
    assert breaker.wait_s("a", 101.0) == 0.0
