import pytest
from prometheus_client import CollectorRegistry, generate_latest

from runtime.observe.metrics import (
    ENDPOINT_OUTCOMES,
    MAX_CODES,
    OTHER_CODE,
    SECONDS_BUCKETS,
    FunctionMetrics,
    Metrics,
)


def shown(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_settled_messages_are_counted_by_function_and_outcome() -> None:
    metrics = Metrics("1.0.0")
    ingest = metrics.function("ingest")
    ingest.count("acked", 500)
    ingest.count("acked")
    ingest.count("dead")
    assert shown(metrics, "runtime_messages_total", function="ingest", outcome="acked") == 501
    assert shown(metrics, "runtime_messages_total", function="ingest", outcome="dead") == 1


def test_every_outcome_is_shown_from_the_start() -> None:
    metrics = Metrics("1.0.0")
    metrics.function("get_shadow", ENDPOINT_OUTCOMES)
    assert shown(metrics, "runtime_messages_total", function="get_shadow", outcome="refused") == 0
    assert shown(metrics, "runtime_messages_total", function="get_shadow", outcome="acked") is None


def test_an_outcome_that_does_not_exist_is_a_mistake() -> None:
    with pytest.raises(KeyError):
        FunctionMetrics("ingest").count("ackd")


@pytest.mark.parametrize(
    ("seconds", "first_bound"),
    [(0.0, "1e-05"), (0.0005, "0.0005"), (0.03, "0.05"), (61.0, "+Inf")],
)
def test_a_call_falls_into_the_bucket_that_prometheus_would_use(
    seconds: float, first_bound: str
) -> None:
    metrics = FunctionMetrics("ingest")
    metrics.observe(seconds)
    assert next(bound for bound, calls in metrics.buckets() if calls) == first_bound
    assert metrics.buckets()[-1] == ("+Inf", 1)
    assert (metrics.calls, metrics.seconds_sum) == (1, seconds)


def test_the_histogram_adds_up() -> None:
    metrics = Metrics("1.0.0")
    for seconds in (0.002, 0.02, 0.2):
        metrics.function("ingest").observe(seconds)
    assert shown(metrics, "runtime_handler_seconds_count", function="ingest") == 3
    assert shown(metrics, "runtime_handler_seconds_sum", function="ingest") == pytest.approx(0.222)
    assert shown(metrics, "runtime_handler_seconds_bucket", function="ingest", le="0.025") == 2


def test_the_consumers_gauges_are_absent_until_known() -> None:
    metrics = Metrics("1.0.0")
    ingest = metrics.function("ingest")
    assert shown(metrics, "runtime_consumer_pending", function="ingest") is None
    ingest.consumer_pending, ingest.consumer_ack_pending, ingest.consumer_redelivered = 7, 3, 0
    assert shown(metrics, "runtime_consumer_pending", function="ingest") == 7
    assert shown(metrics, "runtime_consumer_ack_pending", function="ingest") == 3
    assert shown(metrics, "runtime_consumer_redelivered", function="ingest") == 0


def test_the_number_of_series_of_reason_codes_is_bounded() -> None:
    ingest = FunctionMetrics("ingest")
    for number in range(MAX_CODES + 50):
        ingest.count_dead_letter(f"CODE_{number}")
    ingest.count_dead_letter("CODE_0")
    assert len(ingest.dead_letters) == MAX_CODES + 1
    assert ingest.dead_letters[OTHER_CODE] == 50
    assert ingest.dead_letters["CODE_0"] == 2


def test_a_reloaded_function_counts_on_and_a_removed_one_is_gone() -> None:
    metrics = Metrics("1.0.0")
    metrics.function("ingest").count("acked")
    metrics.function("ingest").count("acked")
    assert shown(metrics, "runtime_messages_total", function="ingest", outcome="acked") == 2
    metrics.forget("ingest")
    assert shown(metrics, "runtime_messages_total", function="ingest", outcome="acked") is None


def test_the_host_and_its_process_are_described() -> None:
    metrics = Metrics("1.2.3")
    metrics.reconnects = 4
    text = generate_latest(metrics.registry).decode()
    assert 'version="1.2.3"' in text
    assert "runtime_reconnects_total 4.0" in text
    assert "process_resident_memory_bytes" in text


def test_two_hosts_in_one_process_do_not_share_a_registry() -> None:
    first, second = Metrics("1.0.0"), Metrics("1.0.0")
    assert isinstance(first.registry, CollectorRegistry)
    assert first.registry is not second.registry


def test_the_bounds_rise() -> None:
    assert list(SECONDS_BUCKETS) == sorted(set(SECONDS_BUCKETS))
