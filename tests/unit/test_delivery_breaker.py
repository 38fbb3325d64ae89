"""The circuit breaker, by its decisions at given times."""

from functions.outbound.breaker import Breaker

PAUSE_S = 30.0


def breaker() -> Breaker:
    return Breaker(calls=10, ratio=0.7, window_s=300.0, pause_s=PAUSE_S)


def test_a_circuit_opens_when_enough_calls_have_mostly_failed() -> None:
    circuit = breaker()
    for _ in range(9):
        circuit.failed("a", 0.0)
    assert circuit.wait_s("a", 1.0) == 0.0
    circuit.failed("a", 1.0)
    assert circuit.wait_s("a", 2.0) == PAUSE_S - 1.0
    assert circuit.wait_s("b", 2.0) == 0.0


def test_a_circuit_with_enough_successes_stays_closed() -> None:
    circuit = breaker()
    for number in range(100):
        circuit.succeeded("a", number)
        circuit.failed("a", number)
        circuit.failed("a", number)
    assert circuit.wait_s("a", 100.0) == 0.0


def test_calls_that_are_older_than_the_window_do_not_count() -> None:
    circuit = breaker()
    for number in range(20):
        circuit.failed("a", number * 40.0)
    assert circuit.wait_s("a", 800.0) == 0.0


def test_one_caller_probes_after_a_pause_and_the_others_wait_for_another() -> None:
    circuit = opened()
    assert circuit.wait_s("a", PAUSE_S) == 0.0
    assert circuit.wait_s("a", PAUSE_S + 1) == PAUSE_S - 1


def test_a_probe_that_succeeds_closes_the_circuit_and_forgets_the_failures() -> None:
    circuit = opened()
    circuit.succeeded("a", PAUSE_S)
    assert circuit.open_for_s("a", PAUSE_S) == 0.0
    for _ in range(8):
        circuit.failed("a", PAUSE_S)
    assert circuit.wait_s("a", PAUSE_S) == 0.0


def test_a_probe_that_fails_begins_another_pause() -> None:
    circuit = opened()
    circuit.failed("a", PAUSE_S + 2)
    assert circuit.wait_s("a", PAUSE_S + 3) == PAUSE_S - 1
    assert circuit.open_for_s("a", 100.0) == 100.0


def test_idle_closed_circuits_are_forgotten_and_open_ones_after_a_day() -> None:
    circuit = opened()
    circuit.succeeded("b", 0.0)
    circuit.forget_idle(1000.0)
    assert circuit.open_for_s("a", 1000.0) == 1000.0
    assert set(circuit._circuits) == {"a"}
    circuit.forget_idle(PAUSE_S + 86_399.0)
    assert set(circuit._circuits) == {"a"}
    circuit.forget_idle(PAUSE_S + 86_401.0)
    assert circuit._circuits == {}


def opened() -> Breaker:
    circuit = breaker()
    for _ in range(10):
        circuit.failed("a", 0.0)
    return circuit
