"""The table of what each MQTT door guarantees names a test for each cell."""

import re

import pytest

from tests.support.documentation import ROOT, read_table

PAGE = ROOT / "docs" / "mqtt.md"
UNTESTED = "EMQX's own matter"


def named_tests() -> dict[str, list[str]]:
    lines = re.findall(
        r"^- \*\*(\w+)\*\* ((?:.|\n  )*)", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    return {letter: re.findall(r"`(tests/[^`]+)`", text) for letter, text in lines}


def test_each_cell_names_its_test() -> None:
    cells = [cell for row in read_table(PAGE, "What each door guarantees") for cell in row[1:]]
    used = {letter for cell in cells for letter in re.findall(r"\*\*(\w+)\*\*", cell)}
    assert [cell for cell in cells if "**" not in cell and cell != UNTESTED] == []
    assert used == set(named_tests())


@pytest.mark.parametrize(
    "test", sorted({each for found in named_tests().values() for each in found})
)
def test_each_test_exists(test: str) -> None:
    file, _, name = test.partition("::")
    assert re.search(
        rf"^(async )?def {name}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE
    )
