"""Compares docs/architecture.md with the code."""

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
NAMES = sorted(set(re.findall(r"`(runtime[\w.]*:\w+)`", PAGE)))


@pytest.mark.parametrize("name", NAMES)
def test_every_name_on_the_page_is_in_the_code(name: str) -> None:
    module, _, attribute = name.partition(":")

    assert hasattr(import_module(module), attribute)


def test_the_stages_stand_on_the_page_in_the_order_in_which_a_message_passes_them() -> None:
    source = (ROOT / "runtime" / "binding" / "consumer.py").read_text(encoding="utf-8")
    [stages] = [
        ast.unparse(node.value)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.AnnAssign)
        and node.value
        and "Stage" in ast.unparse(node.annotation)
    ]

    assert stages == "[isolation, self.spill]"
    named = [PAGE.index(name) for name in ("SingleMessageStage`", ":Spill`")]
    assert named == sorted(named)


def test_only_settlement_settles() -> None:
    """No other part of the bindings sends an acknowledgement, or sends a message back."""
    settling = re.compile(r"settler\.(ack|ack_all|nak|term)\(")
    found = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "runtime").rglob("*.py")
        if settling.search(path.read_text(encoding="utf-8"))
    }

    # The sweeper settles its own consumer of advisories, which belongs to no function.
    assert found <= {"runtime/binding/settlement.py", "runtime/broker/advisories.py"}
