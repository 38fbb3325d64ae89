from runtime.observe.metrics import FunctionMetrics
from runtime.observe.recent_load import WINDOW_S, RecentLoad, Totals


def recent(metrics: FunctionMetrics) -> RecentLoad:
    def totals() -> Totals:
        messages = metrics.messages
        return Totals(sum(messages.values()), messages["retried"], metrics.calls_by_bucket)

    return RecentLoad(totals, now_s=100.0)


def test_before_the_window_is_full_the_load_counts_since_the_start() -> None:
    metrics = FunctionMetrics("ingest")
    load = recent(metrics)
    metrics.count("acked", 40)
    metrics.count("retried", 2)
    metrics.observe(0.002)
    metrics.observe(0.0021)
    metrics.observe(99.0)

    found = load.load(104.0)

    assert (found.seconds, found.messages, found.errors) == (4.0, 42, 2)
    assert found.handler_seconds == {"0.0025": 2, "+Inf": 1}


def test_what_happened_before_the_window_is_not_counted() -> None:
    metrics = FunctionMetrics("ingest")
    load = recent(metrics)
    metrics.count("acked", 1000)
    for second in range(101, 131):
        metrics.count("acked", 10)
        load.sample(float(second))

    found = load.load(130.0)

    assert found.seconds == WINDOW_S
    assert found.messages == 10 * WINDOW_S
    assert found.handler_seconds == {}


def test_a_loop_that_stood_still_makes_the_window_longer_and_the_rate_stays_true() -> None:
    metrics = FunctionMetrics("ingest")
    load = recent(metrics)
    load.sample(101.0)
    metrics.count("acked", 30)
    load.sample(161.0)

    found = load.load(161.0)

    assert (found.seconds, found.messages) == (60.0, 30)
