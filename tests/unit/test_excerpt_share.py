"""What the attempt log keeps of the answers of one tenant's endpoints."""

from functions.route_delivery.excerpt_share import SHORT_CHARACTERS, ExcerptShare

LONG, SHORT = "x" * 16_384, "y" * SHORT_CHARACTERS
SECOND_NS = 1_000_000_000


def test_a_tenant_has_a_share_of_long_answers_and_every_answer_leaves_its_beginning() -> None:
    now_ns = 0
    share = ExcerptShare(lambda: now_ns)
    kept = [share.cut("loud", LONG) for _ in range(1500)]
    assert kept[:1000] == [LONG] * 1000
    assert kept[1000:] == ["x" * (SHORT_CHARACTERS - 1) + "…"] * 500
    assert share.cut("loud", SHORT) == SHORT
    assert share.cut("loud", None) is None
    assert share.cut("quiet", LONG) == LONG

    day = []
    for _ in range(24 * 60):
        now_ns += 60 * SECOND_NS
        day += [share.cut("loud", LONG) for _ in range(20)]
    assert day.count(LONG) == 2 * 24 * 60
    # Of a month at most so much: two long answers a minute, beside short ones.
    assert 31 * day.count(LONG) * len(LONG) < 1.5e9
