import subprocess
import sys

SCRIPT = """
import sys
from functions.domain.cel_engine import cel
print(cel.evaluate("1 + 1"), "prompt_toolkit" in sys.modules, "typer" in sys.modules)
import cel.cli
print(cel.cli.app is not None)
"""


def test_cel_is_imported_without_its_command_line_which_can_be_imported_still() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=60
    )

    assert done.stdout.split() == ["2", "False", "False", "True"]
