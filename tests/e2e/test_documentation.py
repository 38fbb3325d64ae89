"""Compares names, numbers and links in the documents with the code."""

import ast
import re
from pathlib import Path

import pytest

from runtime.broker.leases import LEASES
from runtime.broker.stream_configs import SCHEDULES, runtime_streams
from runtime.observe.metrics import Metrics, StreamBytes
from runtime.settings import _VARIABLES, HostSettings
from tests.contract.table import ROWS
from tests.support.documentation import ROOT, in_code, read_table

PAGES = sorted(
    page
    for folder in (".", "docs", "docs/decisions", "docs/guides", "deploy", "examples")
    for page in (ROOT / folder).glob("**/*.md" if folder in {"deploy", "examples"} else "*.md")
)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
NAMED_TEST = re.compile(r"(tests/\w+/\w+\.py)(?:::(\w+))?")
OPERATIONS = ROOT / "docs" / "operations.md"
WHAT_HAPPENS = ROOT / "docs" / "what-happens-when.md"
TABLE = "tests/contract/table.py"


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The names that a page's headings have in a browser."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    missing = []
    for link in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            missing.append(link)

    assert not missing


def test_every_page_is_in_the_index() -> None:
    index = ROOT / "docs" / "index.md"
    linked = {
        (index.parent / link.partition("#")[0]).resolve() for link in LINK.findall(prose(index))
    }

    assert set((ROOT / "docs").rglob("*.md")) - linked == {index}


def test_decisions_are_numbered_without_gaps_and_titled_so() -> None:
    pages = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    numbers = [int(page.name[:4]) for page in pages]

    assert numbers == list(range(1, len(pages) + 1))
    for number, page in zip(numbers, pages, strict=True):
        assert page.read_text("utf-8").startswith(f"# {number}. ")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_test_that_is_named_exists(page: Path) -> None:
    for file, name in NAMED_TEST.findall(page.read_text("utf-8")):
        assert not name or name in names_of_tests(file), f"{file} has no {name}"


def names_of_tests(file: str) -> set[str]:
    """The tests that a module has, or the rows of the settling table."""
    if file == TABLE:
        return {row.name for row in ROWS}
    tree = ast.parse((ROOT / file).read_text("utf-8"))
    return {
        node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_every_paragraph_on_what_happens_names_its_test() -> None:
    _, *sections = re.split(r"^## ", WHAT_HAPPENS.read_text("utf-8"), flags=re.MULTILINE)

    unproved = [text.splitlines()[0] for text in sections if not NAMED_TEST.search(text)]
    assert unproved == ["What is not there"]


def test_every_row_of_the_settling_table_has_its_paragraph() -> None:
    text = WHAT_HAPPENS.read_text("utf-8")
    named = [name for file, name in NAMED_TEST.findall(text) if file == TABLE and name]

    assert sorted(named) == sorted(names_of_tests(TABLE))


def test_the_table_of_variables_is_what_the_host_reads() -> None:
    rows = read_table(OPERATIONS, "Environment")

    assert {in_code(row[0])[0] for row in rows} == set(_VARIABLES)


@pytest.mark.parametrize("row", read_table(OPERATIONS, "Environment"), ids=lambda row: row[0])
def test_the_default_of_a_variable_is_the_hosts(row: list[str]) -> None:
    field = _VARIABLES[in_code(row[0])[0]]
    default = HostSettings.model_fields[field].default
    said = row[1].strip("`")

    if default is None:
        assert not said or said.startswith("made")
    else:
        assert said == f"{default:g}" if isinstance(default, float) else said == str(default)


def test_the_variables_of_the_shipped_manifests_are_named() -> None:
    used = {
        name
        for manifest in (ROOT / "manifests").glob("*.yaml")
        for name in re.findall(r"(?:\$\{|from_env: )([A-Z_]+)", manifest.read_text("utf-8"))
    }

    assert used
    assert used <= set(in_code(prose(OPERATIONS)))


def test_the_table_of_metrics_is_what_the_host_shows() -> None:
    metrics = Metrics("1.0.0", restarts={"1": 0})
    metrics.drifted_fields["stream S"] = 0
    metrics.stream_fills["S"] = StreamBytes(stored=0, limit=1)
    metrics.unread_percents["S"] = 0
    function = metrics.function("one")
    function.count_dead_letter("CODE")
    function.consumer_pending = function.consumer_ack_pending = function.consumer_redelivered = 1
    shown = set()
    for family in metrics.collect():
        [sample] = [one for one in family.samples if not one.name.endswith("_bucket")][:1]
        kind = "gauge" if family.type == "info" else family.type
        ending = {"counter": "_total", "info": "_info"}.get(family.type, "")
        labels = tuple(label for label in sample.labels if label != "le")
        shown.add((family.name + ending, kind, labels))

    rows = read_table(OPERATIONS, "Metrics")
    assert {(in_code(row[0])[0], row[1], tuple(in_code(row[2]))) for row in rows} == shown


def test_the_streams_of_the_host_are_named() -> None:
    rows = read_table(ROOT / "docs" / "concepts.md", "Streams")

    own = {*runtime_streams((2, 12, 0)), SCHEDULES, LEASES}
    assert {in_code(row[0])[0] for row in rows} == own
