"""The management API's table of errors has each code with the status that its function gives it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from functions.shadow import endpoints
from tests.support.documentation import ROOT, in_code

PAGE = ROOT / "docs" / "management-api.md"
FOLDERS = ("management", "commands", "shadow", "erasure")
FILES = ("ingest/importing.py", "domain/paging.py")
OF_THE_RUNTIME = {("PAYLOAD_INVALID", 422)}


def sources() -> Iterator[Path]:
    for folder in FOLDERS:
        yield from (ROOT / "functions" / folder).rglob("*.py")
    yield from (ROOT / "functions" / file for file in FILES)


def given() -> set[tuple[str, int]]:
    """Codes and statuses of every `Reject` with a constant code."""
    found = set()
    for file in sources():
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            match node:
                case ast.Call(
                    func=ast.Name("Reject"), args=[ast.Constant(str(code)), *_], keywords=keywords
                ):
                    status = {each.arg: ast.literal_eval(each.value) for each in keywords}
                    found.add((code, status.get("status", 400)))
    return found | set(endpoints._STATUS.items())


def told() -> set[tuple[str, int]]:
    text = PAGE.read_text("utf-8").partition("Errors are RFC 9457 problem JSON")[2]
    found = set()
    for line in text.partition("\n## ")[0].splitlines():
        if re.match(r"\| \d", line):
            statuses, codes = line.strip("|").split("|")
            numbers = [int(number) for number in re.findall(r"\b[45]\d\d\b", statuses)]
            found |= {(code, number) for code in in_code(codes) for number in numbers}
    return found


def test_each_code_stands_in_a_row_of_its_status() -> None:
    assert given() - told() == set()


def test_no_code_has_two_statuses() -> None:
    codes = [code for code, _ in given()]
    assert sorted(codes) == sorted(set(codes))


def test_each_code_of_the_table_is_given() -> None:
    codes = {code for code, _ in given() | OF_THE_RUNTIME}
    assert {code for code, _ in told()} == codes
