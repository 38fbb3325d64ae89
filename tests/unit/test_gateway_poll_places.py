"""Places for polls that wait are shared evenly by tenants."""

from functions.http_gateway.poll_places import PollPlaces


def test_a_device_has_one_poll() -> None:
    places = PollPlaces(1)
    first = places.take("t", "d")
    second = places.take("t", "d")
    assert first is not None
    assert second is not None
    assert first.is_set()
    places.leave("t", "d", first)
    assert not second.is_set()
    places.leave("t", "d", second)
    places.leave("t", "d", second)
    assert places.take("t", "other") is not None


def test_the_longest_poll_of_the_tenant_with_the_most_makes_room() -> None:
    places = PollPlaces(4)
    many = [places.take("many", f"d{n}") for n in range(4)]
    assert places.take("many", "d4") is None
    few = [places.take("few", f"d{n}") for n in range(2)]
    assert [place is not None and place.is_set() for place in many] == [True, True, False, False]
    # Two and two: nobody has more than the other would have.
    assert places.take("few", "d2") is None
    assert [place is not None and place.is_set() for place in few] == [False, False]
    assert places.take("third", "d0") is not None
    assert [place is not None and place.is_set() for place in many] == [True, True, True, False]


def test_without_places_nobody_waits() -> None:
    assert PollPlaces(0).take("t", "d") is None
