import math
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from runtime.cli.function_views import FunctionView
from runtime.cli.instances import Instance
from runtime.cli.keyboard import decode
from runtime.cli.load import Load
from runtime.cli.rate_history import MOST_POLLS, RateHistory, sparkline
from runtime.cli.top_screen import SORT_KEYS, Screen, rows_of


def view(name: str, *, requests: int = 0, ids: str = "a", **more: Any) -> FunctionView:
    processes = [
        Instance.model_validate(
            {
                "function": name,
                "kind": more.get("kind", "consumer"),
                "id": one,
                "code_version": "aaaa",
                "host": "web",
                "pid": one,
                "requests": requests,
            }
        )
        for one in ids
    ]
    return FunctionView(name, **{"kind": "consumer", "processes": processes, **more})


def many() -> list[FunctionView]:
    return [
        view("a_name_that_is_longer_than_any_column_of_a_narrow_terminal_would_allow", pending=0),
        view("quick", load=Load(98_300.0, 983_000, 0, {0.00001: 983_000}), pending=12),
        view("failing", load=Load(1234.0, 100, 50, {1.0: 99, math.inf: 1}), pending=1_234_567),
        view("lasting", kind="service"),
        view("stopped", ids="", pending=5, dead_letters=12_345),
        *(view(f"get_{n}", kind="endpoint", service="asks", load=Load(1.0)) for n in range(30)),
    ]


def lines(screen: Screen, views: list[FunctionView], width: int, height: int = 40) -> list[str]:
    console = Console(width=width, height=height, color_system=None, force_terminal=False)
    history = RateHistory()
    history.add(views, 0.0)
    rows = rows_of(views, folds=True)
    shown = screen.render(views, rows, history, width=width, height=height, clock="12:00:00")
    with console.capture() as captured:
        console.print(shown)
    return captured.get().splitlines()


def names(screen: Screen) -> list[str]:
    return [line.split()[0][:7] for line in lines(screen, many(), 120)[5:-1]]


@pytest.mark.parametrize("width", [80, 100, 200])
def test_the_screen_fits_and_has_every_figure(width: int) -> None:
    found = lines(Screen("nats://127.0.0.1:4222"), many(), width)
    headings = " ".join(found[3:5])

    assert all(cell_len(line.rstrip()) <= width for line in found)
    assert all(name in headings for name in ("LOAD", "MSG/S", "ERRORS", "P99", "PENDING", "STATE"))
    assert ("P50" in headings) is (width > 80)
    [quick] = [line.split() for line in found if line.startswith("quick ")]
    assert "98.3k" in quick
    assert "running" in quick
    [failing] = [line for line in found if line.startswith("failing")]
    assert "1,234,567" in failing
    assert "50%" in failing
    assert ">60s" in failing or "1.0s" in failing
    assert sum(line.startswith("asks ") for line in found) == 1
    assert "not running" in "\n".join(found)
    assert found[-1].split()[:2] == ["q", "quit"]
    assert found[-1].split()[-2:] == ["r", "reverse"]


@pytest.mark.parametrize("height", [5, 12, 24])
def test_a_low_terminal_shows_some_rows_and_scrolls(height: int) -> None:
    screen = Screen("nats://x")
    views = [view(f"f{number:02}") for number in range(40)]

    first = lines(screen, views, 80, height)
    screen.press("page down", 40, height)
    second = lines(screen, views, 80, height)
    for _ in range(100):
        screen.press("page down", 40, height)
    last = lines(screen, views, 80, height)
    screen.press("home", 40, height)

    assert len(first) <= max(height, 7)
    assert first[1].strip().startswith("1 to ")
    assert second[1] != first[1]
    assert last[1].strip().startswith("40 to 40" if height == 5 else f"{41 - (height - 6)} to 40")
    assert "f39" in "\n".join(last)
    assert screen.first == 0


def test_keys_sort_and_reverse_and_mark_the_column() -> None:
    screen = Screen("nats://x")
    assert names(screen)[:2] == ["a_name_", "asks"]

    for key, first in (("m", "quick"), ("e", "failing"), ("t", "failing"), ("p", "failing")):
        assert not screen.press(key, 6, 40)
        assert names(screen)[0] == first
    screen.press("d", 6, 40)
    assert names(screen)[0] == "stopped"
    assert "LETTERS▼" in "\n".join(lines(screen, many(), 120))
    screen.press("r", 6, 40)
    assert names(screen)[-1] == "stopped"
    assert "LETTERS▲" in "\n".join(lines(screen, many(), 120))
    screen.press("x", 6, 40)
    assert screen.press("q", 6, 40)


def test_every_sort_has_a_key_of_its_own() -> None:
    assert len({sort.key for sort in SORT_KEYS} | {"q", "r"}) == len(SORT_KEYS) + 2


def test_old_figures_are_marked_and_names_of_functions_are_escaped() -> None:
    screen = Screen("nats://x", trouble="NATS is away, waiting for it; the figures are of 12:00:00")

    found = lines(screen, [view("evil\x1b[31m[red]")], 80)

    assert found[1].startswith("NATS is away")
    assert any("evil\\x1b[31m[red]" in line for line in found)


def test_rates_are_between_two_polls_and_a_restart_begins_at_zero() -> None:
    history = RateHistory()
    history.add([view("f", requests=100)], 10.0)
    assert history.of(["f"]) == []
    history.add([view("f", requests=150)], 12.0)
    history.add([view("f", requests=7, ids="b")], 14.0)
    history.add([view("f", requests=9, ids="b")], 15.0)

    assert history.of(["f"]) == [25.0, 0.0, 2.0]
    assert history.of(["f", "absent"]) == [25.0, 0.0, 2.0]
    for second in range(MOST_POLLS + 10):
        history.add([view("f", requests=9, ids="b")], 16.0 + second)
    assert len(history.of(["f"])) == MOST_POLLS


def test_rates_of_functions_that_began_at_different_times_are_added_at_their_times() -> None:
    history = RateHistory()
    history.add([view("a")], 0.0)
    history.add([view("a", requests=5)], 1.0)
    history.add([view("a", requests=6), view("b")], 2.0)
    history.add([view("a", requests=6), view("b", requests=10)], 3.0)

    assert history.of(["a", "b"]) == [5.0, 1.0, 10.0]


@pytest.mark.parametrize(
    ("rates", "shown"),
    [
        *(([], "    "), ([0, 0], "  ▁▁"), ([1, 1], "  ██"), ([0, 1, 50, 100], "▁▂▅█")),
        ([9, 9, 9, 9, 0, 0, 0, 7], "▁▁▁█"),
    ],
)
def test_a_sparkline_shows_the_newest_rates(rates: list[float], shown: str) -> None:
    assert sparkline(rates, 4) == shown


def test_keys_are_decoded_also_when_several_arrive_at_once() -> None:
    assert [*decode(b"m\x1b[A\x1b[6~q")] == ["m", "up", "page down", "q"]
    assert [*decode(b"\x1b[200~")] == []
    assert [*decode(b"\xff")] == ["ÿ"]
