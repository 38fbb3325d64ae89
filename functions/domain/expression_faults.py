"""Says where the fault of an expression is, and what is expected there, for its author."""

import re
from collections.abc import Container

_ERROR = re.compile(r"ERROR: <input>:(\d{1,5}):(\d{1,5}): (Syntax error: )?([^\n]{1,600})")
_UNEXPECTED = re.compile(
    r"(?:mismatched input|extraneous input|no viable alternative at input) '(.{1,500}?)'"
    r"(?: expecting (.{1,300}))?"
)
_UNREADABLE = re.compile(r"token recognition error at: '(.{1,500})'")
_MISSING = re.compile(r"missing ('.{1,20}') at '(.{1,500})'")
_EXPECTED = re.compile(r"'[^']{1,20}'|<EOF>|\w+")
_SHOWN_CHARACTERS = 40
_TOLD_CHARACTERS = 120
_VALUES = frozenset(
    {"'['", "'{'", "'('", "'.'", "'-'", "'!'", "'true'", "'false'", "'null'"}
    | {"NUM_FLOAT", "NUM_INT", "NUM_UINT", "STRING", "BYTES", "IDENTIFIER"}
)
_OPERATORS = frozenset(
    {"'=='", "'!='", "'in'", "'<'", "'<='", "'>='", "'>'", "'&&'", "'||'"}
    | {"'['", "'.'", "'-'", "'?'", "'+'", "'*'", "'/'", "'%'"}
)
_WORDS = {"<EOF>": "the end", "IDENTIFIER": "a name"}
_QUOTED = re.compile(
    r"//[^\n]*"
    r"|[rR][bB]?(?:'[^'\n]*'|\"[^\"\n]*\")"
    r"|'''.*?'''|\"\"\".*?\"\"\""
    r"|'(?:\\.|[^'\\\n])*'|\"(?:\\.|[^\"\\\n])*\""
    r"|(\.\s*)?\b([A-Za-z_]\w*)(\s*\()?",
    re.DOTALL,
)


def place(text: str, offset: int) -> str:
    """The place of a character: `line 1, column 1` is the first."""
    line_start = text.rfind("\n", 0, offset) + 1
    return f"line {text.count(chr(10), 0, offset) + 1}, column {offset - line_start + 1}"


def syntax_fault(failure: Exception) -> str:
    """Place and kind of what the parser has refused, such as `line 1, column 4: …`.

    The parser may report several faults, of which the first syntax error is the cause. Its terms
    become plain words; what it says otherwise, of its own state, is not told.
    """
    found = list(_ERROR.finditer(str(failure)))
    if not found:
        return ""
    first = next((each for each in found if each[3]), found[0])
    line, column, is_syntax, told = first.groups()
    return f"line {line}, column {column}: {_in_words(told) if is_syntax else _other(told)}"


def find_variable(text: str, names: Container[str]) -> tuple[int, str] | None:
    """Offset and name of the first variable that is one of `names`; None if it is not found."""
    for found in _QUOTED.finditer(text):
        is_member, name, is_called = found.groups()
        if name and not is_member and not is_called and name in names:
            return found.start(2), name
    return None


def find_call(text: str, names: Container[str]) -> tuple[int, str] | None:
    """Offset and name of the first call of one of `names`; None if it is not found."""
    for found in _QUOTED.finditer(text):
        if found[2] and found[3] and found[2] in names:
            return found.start(2), found[2]
    return None


def shown(text: str) -> str:
    """A part of the expression in quotes, shortened."""
    short = text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
    return f"'{short}'"


def _in_words(told: str) -> str:
    if found := _UNREADABLE.fullmatch(told):
        return f"cannot read {shown(found[1])}"
    if found := _MISSING.fullmatch(told):
        return f"{_seen(found[2])}; expected {found[1]}"
    if found := _UNEXPECTED.fullmatch(told):
        expected = f"; expected {_expected(found[2])}" if found[2] else ""
        return f"{_seen(found[1])}{expected}"
    return "nested too deeply" if "Recursion limit" in told else "syntax error"


def _other(told: str) -> str:
    return "syntax error" if "Context" in told else told[:_TOLD_CHARACTERS]


def _seen(token: str) -> str:
    return "the text ends" if token == "<EOF>" else f"unexpected {shown(token)}"  # noqa: S105 - of CEL


def _expected(told: str) -> str:
    """`a value`, `an operator` and single tokens, in place of all the tokens that would do."""
    tokens = set(_EXPECTED.findall(told))
    words = []
    for group, word in ((_VALUES, "a value"), (_OPERATORS, "an operator")):
        if len(tokens & group) > len(group) // 2:
            words.append(word)
            tokens -= group
    words += [_WORDS.get(token, token) for token in sorted(tokens)]
    return " or ".join(words)


__all__ = ["find_call", "find_variable", "place", "shown", "syntax_fault"]
