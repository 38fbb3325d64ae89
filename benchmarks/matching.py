"""Measures what it costs to find the routes of a message, by how many routes its tenant has."""

import time

from benchmarks.table import Matching
from functions.domain.topic_filters import topic_matches
from functions.domain.topic_trie import TopicTrie

ROUTES = (10, 1_000, 10_000)
LOOKUPS = 20_000
ONE_BY_ONE = 20
_TOPIC = "tenant/t/device/{}/telemetry"
_FILTERS = (
    "tenant/t/device/{}/telemetry",
    "tenant/t/device/{}/+",
    "tenant/t/device/{}/#",
    "tenant/+/device/{}/event",
)


def measure() -> list[Matching]:
    """µs a message at each number of routes, of which three match each message."""
    return [_measure(routes) for routes in ROUTES]


def _measure(routes: int) -> Matching:
    filters = [_FILTERS[number % 4].format(f"d{number // 4}") for number in range(routes)]
    began_s = time.perf_counter()
    trie = TopicTrie((topic_filter, topic_filter) for topic_filter in filters)
    built_s = time.perf_counter() - began_s
    devices = routes // 4
    topics = [_TOPIC.format(f"d{number % devices}") for number in range(LOOKUPS)]
    began_s = time.perf_counter()
    matches = sum(len(trie.matching(topic)) for topic in topics)
    took_s = time.perf_counter() - began_s
    if matches != 3 * LOOKUPS:
        raise RuntimeError(f"{matches} matches of {LOOKUPS} topics")
    began_s = time.perf_counter()
    for topic in topics[:ONE_BY_ONE]:
        if sum(topic_matches(each, topic) for each in filters) != 3:  # noqa: PLR2004 - as above
            raise RuntimeError("the trie and the matcher of one filter differ")
    beside_s = time.perf_counter() - began_s
    return Matching(
        routes, took_s / LOOKUPS * 1e6, beside_s / ONE_BY_ONE * 1e6, built_s / routes * 1e6
    )


__all__ = ["measure"]
