from pathlib import Path

import pytest

from runtime.errors import Problem
from runtime.loader import LoadFailure


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_failure_shows_the_line_with_its_neighbours() -> None:
    Path("shop.py").write_text("import json\n\n\ndef place(order):\n\treturn order.\n")

    failure = LoadFailure.of([Problem("shop.py:5", "", "invalid syntax", "correct the module")])

    assert str(failure) == "shop.py:5: invalid syntax; correct the module"
    assert failure.excerpt == "  4 │ def place(order):\n> 5 │     return order."


def test_the_first_of_several_problems_is_shown_and_the_others_are_counted() -> None:
    problems = [
        Problem("app.yaml:3", "functions.f.handler", "there is no module shop", "write it"),
        Problem("app.yaml:4", "functions.f.timeout", "is less than 0", "write 30s"),
    ]

    failure = LoadFailure.of(problems)

    assert failure.wrong == "functions.f.handler: there is no module shop (and 1 more)"
    assert failure.excerpt == ""


def test_of_an_entry_and_a_key_inside_it_the_key_is_shown() -> None:
    problems = [
        Problem("app.yaml:8", "functions.f", "no binding found", "write exactly one"),
        Problem("app.yaml:11", "functions.f.consumr", "no such key", "did you mean consumer?"),
    ]

    failure = LoadFailure.of(problems)

    assert failure.where == "app.yaml:11"
    assert failure.wrong == "functions.f.consumr: no such key (and 1 more)"


@pytest.mark.parametrize("where", ["manifest", "function f", "gone.py:3", "shop.py:99"])
def test_a_place_without_a_line_has_no_excerpt(where: str) -> None:
    Path("shop.py").write_text("pass\n")

    assert LoadFailure.of([Problem(where, "", "wrong", "right")]).excerpt == ""


def test_an_excerpt_never_sends_a_control_character_to_the_terminal() -> None:
    Path("shop.py").write_text('text = "\x1b[2J"\n')

    failure = LoadFailure.of([Problem("shop.py:1", "", "wrong", "right")])

    assert "\x1b" not in failure.excerpt
