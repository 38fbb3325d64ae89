"""Runs pytest, and in CI what failed once more, alone: `python -m tools.run_tests ARGUMENT...`.

Thousands of tests with real servers, four at a time on whatever machine CI has, now and then meet a
delay that none of them met before. A test that passes three times alone met one, and is named for
somebody to look into; a fault that a change brought fails alone, too. More than three failures are
not repeated, nor are those of a run that pytest did not finish.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

ROUNDS = 3
MOST = 3
TESTS_FAILED = 1  # pytest's exit code: https://docs.pytest.org/en/stable/reference/exit-codes.html
_FAILED = Path(".pytest_cache", "v", "cache", "lastfailed")


def main(arguments: list[str]) -> int:
    """Return pytest's exit code, or 0 when all that failed passes alone."""
    _FAILED.unlink(missing_ok=True)
    exit_code = _run_pytest(arguments)
    if exit_code != TESTS_FAILED or "CI" not in os.environ:
        return exit_code
    failed = sorted(json.loads(_FAILED.read_text()))
    if len(failed) > MOST:
        return exit_code
    for number in range(ROUNDS):
        print(f"once more, alone, {number + 1} of {ROUNDS}: {' '.join(failed)}", flush=True)
        if exit_code := _run_pytest(failed):
            return exit_code
    for test in failed:
        print(f"UNSTABLE: {test} failed beside other tests, and passed {ROUNDS} times alone")
    return 0


def _run_pytest(arguments: list[str]) -> int:
    return subprocess.run([sys.executable, "-m", "pytest", *arguments], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
