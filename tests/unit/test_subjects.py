from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.subjects import covers, matches, overlaps

TOKENS = st.sampled_from(["a", "b"])
SUBJECTS = st.lists(TOKENS, min_size=1, max_size=4).map(".".join)


@st.composite
def patterns(draw: st.DrawFn) -> str:
    parts = draw(st.lists(st.one_of(TOKENS, st.just("*")), min_size=0, max_size=3))
    if not parts or draw(st.booleans()):
        parts.append(">" if draw(st.booleans()) else draw(TOKENS))
    return ".".join(parts)


def fits(pattern: list[str], subject: list[str]) -> bool:
    """The definition in its simplest form."""
    if not pattern:
        return not subject
    if pattern == [">"]:
        return bool(subject)
    if not subject or pattern[0] not in {"*", subject[0]}:
        return False
    return fits(pattern[1:], subject[1:])


ALL_SUBJECTS = [
    ".".join(parts) for length in range(1, 6) for parts in product("abz", repeat=length)
]
"""Every subject of up to five tokens; `z` is a token that no pattern names."""


def language(pattern: str) -> set[str]:
    return {subject for subject in ALL_SUBJECTS if fits(pattern.split("."), subject.split("."))}


@given(patterns(), SUBJECTS)
def test_a_subject_matches_as_the_definition_says(pattern: str, subject: str) -> None:
    assert matches(pattern, subject) == fits(pattern.split("."), subject.split("."))


@given(patterns(), patterns())
def test_two_patterns_overlap_when_a_subject_fits_both(one: str, other: str) -> None:
    assert overlaps(one, other) == bool(language(one) & language(other))
    assert overlaps(one, other) == overlaps(other, one)


@given(patterns(), patterns())
def test_a_pattern_covers_another_when_all_its_subjects_fit(outer: str, inner: str) -> None:
    assert covers(outer, inner) == (language(inner) <= language(outer))


@pytest.mark.parametrize(
    ("pattern", "subject", "expected"),
    [
        ("telemetry.>", "telemetry.acme", True),
        ("telemetry.>", "telemetry.acme.dev1", True),
        ("telemetry.>", "telemetry", False),
        ("telemetry.*", "telemetry.acme.dev1", False),
        ("*.acme", "telemetry.acme", True),
        (">", "x", True),
    ],
)
def test_known_subjects_match_known_patterns(pattern: str, subject: str, expected: bool) -> None:
    assert matches(pattern, subject) is expected
