"""The choice of a table's columns for a terminal's width."""

from hypothesis import given
from hypothesis import strategies as st

from runtime.cli.selection import FunctionFilter, common_subject
from runtime.cli.table import Column, fit

COLUMNS = (
    Column("NAME", least=10, is_name=True),
    Column("COUNT", is_number=True),
    Column("MORE", priority=2, least=12),
    Column("MOST", priority=1),
)


def test_everything_is_whole_where_there_is_room() -> None:
    assert fit(COLUMNS, [20, 5, 30, 8], 80) == {0: 20, 1: 5, 2: 30, 3: 8}


def test_what_may_be_shortened_is_shortened_before_a_column_is_left_out() -> None:
    assert fit(COLUMNS, [20, 5, 30, 8], 60) == {0: 20, 1: 5, 2: 21, 3: 8}
    assert fit(COLUMNS, [20, 5, 30, 8], 41) == {0: 10, 1: 5, 2: 12, 3: 8}


def test_columns_are_left_out_by_their_priority_and_the_others_have_their_room() -> None:
    assert fit(COLUMNS, [20, 5, 30, 8], 40) == {0: 20, 1: 5, 3: 8}
    assert fit(COLUMNS, [20, 5, 30, 8], 26) == {0: 19, 1: 5}


def test_what_stays_always_is_shortened_further_where_nothing_else_is_left() -> None:
    assert fit(COLUMNS, [20, 5, 30, 8], 15) == {0: 8, 1: 5}


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(4, 20)), min_size=1, max_size=12),
    st.lists(st.integers(5, 200), min_size=12, max_size=12),
    st.integers(40, 200),
)
def test_a_table_is_never_wider_than_the_terminal(
    chosen: list[tuple[int, int]], natural: list[int], room: int
) -> None:
    columns = [Column("NAME", least=8), Column("STATE", least=8)]
    columns += [Column("X", priority=priority + 1, least=least) for priority, least in chosen]

    widths = fit(columns, natural * 2, room)

    assert sum(widths.values()) + 2 * (len(widths) - 1) <= room
    assert {0, 1} <= widths.keys()


def test_functions_are_chosen_by_name_and_kind() -> None:
    every, some = FunctionFilter(), FunctionFilter("get_*", "endpoint")

    assert every.takes("ingest", "consumer", "")
    assert some.takes("get_shadow", "endpoint", "management")
    assert not some.takes("get_shadow", "consumer", "")
    assert not some.takes("put_shadow", "endpoint", "management")
    assert FunctionFilter("management").takes("put_shadow", "endpoint", "management")
    assert not FunctionFilter("management").takes("ingest", "consumer", "")


def test_subjects_have_their_beginning_in_common() -> None:
    assert common_subject(["a.b.c", "a.b.d.e"]) == "a.b.>"
    assert common_subject(["a", "b"]) == ">"
