"""Migrations follow one another: two that land together would else both be the same number."""

import re
from pathlib import Path

VERSIONS = Path(__file__).parents[2] / "functions" / "domain" / "migrations" / "versions"


def test_every_migration_follows_the_one_before_it() -> None:
    files = sorted(VERSIONS.glob("[0-9]*.py"))
    before = None
    for number, file in enumerate(files, start=1):
        text = file.read_text(encoding="utf-8")
        revision = f"{number:04}"
        assert file.name.startswith(f"{revision}_"), file.name
        assert re.search(rf'^revision = "{revision}"$', text, re.MULTILINE), file.name
        wanted = "None" if before is None else f'"{before}"'
        assert re.search(rf"^down_revision = {wanted}$", text, re.MULTILINE), file.name
        before = revision
