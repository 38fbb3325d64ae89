"""How many messages a stream has deleted that a consumer never got, by two looks at both."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.unread_messages import Lost, Place, accounted, lost_since, seconds_left
from runtime.unread_watch import _level

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["publish", "deliver", "again", "settle", "look"]), st.integers(1, 9)
    ),
    max_size=60,
)


@dataclass
class Model:
    """A stream that keeps ten messages, and a consumer of all of them."""

    last: int = 0
    delivered_to: int = 0
    deliveries: int = 0
    pending: list[int] = field(default_factory=list)
    redelivered: set[int] = field(default_factory=set)
    lost: int = 0

    @property
    def first(self) -> int:
        return max(1, self.last - 9)

    def publish(self, count: int) -> None:
        for _ in range(count):
            self.last += 1
            if self.first - 1 > self.delivered_to and self.first > 1:
                self.lost += int(self.first - 1 > max(self.delivered_to, self._lost_to))
                self._lost_to = self.first - 1
            self.pending = [each for each in self.pending if each >= self.first]

    _lost_to: int = 0

    def deliver(self, count: int) -> None:
        for _ in range(count):
            following = max(self.delivered_to + 1, self.first)
            if following <= self.last:
                self.delivered_to = following
                self.deliveries += 1
                self.pending.append(following)

    def again(self, count: int) -> None:
        for sequence in self.pending[:count]:
            self.deliveries += 1
            self.redelivered.add(sequence)

    def settle(self, count: int) -> None:
        self.pending = self.pending[count:]

    def place(self) -> Place:
        return Place(
            min(self.pending, default=self.delivered_to + 1) - 1,
            self.last - self.delivered_to,
            delivered_to=self.delivered_to,
            deliveries=self.deliveries,
            undelivered=self.last - max(self.delivered_to, self.first - 1),
            redelivered=len(self.redelivered & set(self.pending)),
            created="once",
        )


@given(STEPS)
def test_what_was_lost_is_within_the_bounds_and_exact_without_redelivery(
    steps: list[tuple[str, int]],
) -> None:
    model = Model()
    before: Place | None = None
    told = Lost(0, 0)
    is_repeated = False
    for step, count in [*steps, ("look", 1)]:
        if step != "look":
            is_repeated |= step == "again" and bool(model.pending)
            getattr(model, step)(count)
            continue
        place = model.place()
        lost = lost_since(before or accounted(Place(0, 0, created="once"), 1), place, model.first)
        told = Lost(told.at_least + lost.at_least, told.at_most + lost.at_most)
        before = accounted(place, model.first)
    assert told.at_least <= model.lost
    if not is_repeated:
        assert told == (model.lost, model.lost)


def test_a_delivery_that_repeats_leaves_a_range() -> None:
    before = Place(10, 90, delivered_to=10, deliveries=10, created="once")
    # Sequences up to 60 are gone; 30 deliveries: of which some may be repeats.
    now = Place(80, 20, delivered_to=80, deliveries=40, redelivered=3, created="once")
    assert lost_since(before, now, 61) == (40, 50)
    certain = now._replace(redelivered=0)
    assert lost_since(before, certain, 61) == (40, 40)


def test_at_the_first_look_the_place_of_the_consumer_tells() -> None:
    place = Place(10, 90, delivered_to=20, deliveries=99, created="once")
    assert lost_since(None, place, 61) == (40, 40)
    assert lost_since(None, place, 21) == (0, 0)
    assert lost_since(accounted(place, 61), place, 61) == (0, 0)
    assert lost_since(accounted(place, 61), place, 71) == (10, 10)
    # A consumer that was made anew begins anew.
    assert lost_since(place._replace(created="before"), place, 61) == (40, 40)


def test_of_a_consumer_with_filters_a_message_that_it_waited_for_is_missed() -> None:
    before = Place(49, 3, is_filtered=True, delivered_to=20, deliveries=20, undelivered=3)
    assert lost_since(None, before, 200) == (0, 0)
    # Its oldest one, 50, is still there.
    assert lost_since(before, before, 50) == (0, 0)
    assert lost_since(before, before, 60) == (1, 3)
    # It has got all three.
    got = before._replace(delivered_to=90, deliveries=23, undelivered=0)
    assert lost_since(before, got, 60) == (0, 0)


@pytest.mark.parametrize(
    ("samples", "left_s"),
    [
        ([(0.0, 0.2), (10.0, 0.4)], 30.0),
        ([(0.0, 0.2), (5.0, 0.9), (10.0, 0.4)], 30.0),
        # Too short to be a trend, too little, or none.
        ([(0.0, 0.2), (2.0, 0.4)], None),
        ([(0.0, 0.0), (10.0, 0.09)], None),
        ([(0.0, 0.4), (10.0, 0.4)], None),
        ([(0.0, 0.4)], None),
        ([(0.0, 0.5), (10.0, 1.0)], 0.0),
    ],
)
def test_when_a_limit_is_reached(samples: list[tuple[float, float]], left_s: float | None) -> None:
    found = seconds_left(samples)
    assert found == (None if left_s is None else pytest.approx(left_s))


@pytest.mark.parametrize(
    ("percent", "left_s", "level"),
    [(79, None, 0), (80, None, 1), (95, None, 2), (20, 61.0, 0), (20, 60.0, 1), (20, 9.0, 2)],
)
def test_an_alarm_comes_by_what_is_full_or_by_how_fast_it_fills(
    percent: int, left_s: float | None, level: int
) -> None:
    assert _level(percent, left_s) == level
