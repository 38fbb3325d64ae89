"""The trie of topic filters says the same as the matcher of a single one."""

import string

from hypothesis import given
from hypothesis import strategies as st

from functions.domain.topic_filters import topic_matches
from functions.domain.topic_trie import TopicTrie

# Few names, so that filters and topics meet; the empty one stands between two slashes.
NAMES = st.sampled_from(["", "a", "b", "tenant", "$SYS"])
TOPICS = st.lists(NAMES, min_size=1, max_size=6).map("/".join)


@st.composite
def topic_filters(draw: st.DrawFn) -> str:
    levels = draw(st.lists(NAMES | st.just("+"), min_size=1, max_size=6))
    if draw(st.booleans()):
        levels.append("#")
    return "/".join(levels)


@given(st.lists(topic_filters() | st.just("#"), max_size=30), TOPICS)
def test_the_trie_finds_what_the_matcher_of_one_filter_says_in_the_order_of_adding(
    filters: list[str], topic: str
) -> None:
    trie = TopicTrie((each, number) for number, each in enumerate(filters))
    assert len(trie) == len(filters)
    wanted = [number for number, each in enumerate(filters) if topic_matches(each, topic)]
    assert trie.matching(topic) == wanted


@given(
    st.lists(topic_filters(), max_size=8),
    st.text(alphabet=string.ascii_letters + "/+#$ ", max_size=40),
)
def test_a_topic_that_holds_wildcards_is_looked_up_like_any_other(
    filters: list[str], topic: str
) -> None:
    wanted = [each for each in filters if topic_matches(each, topic)]
    assert TopicTrie((each, each) for each in filters).matching(topic) == wanted


def test_a_filter_may_have_several_values() -> None:
    trie = TopicTrie([("a/+", 1), ("a/#", 2), ("a/+", 3), ("b", 4)])
    assert trie.matching("a/x") == [1, 2, 3]
    assert trie.matching("a") == [2]
    assert trie.matching("c") == []
