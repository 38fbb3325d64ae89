"""Reads what a handler's docstring says of it."""

import inspect
from collections.abc import Callable
from typing import Any

_LONGEST = 1024


def read_summary(handler: Callable[..., Any]) -> str:
    """The docstring's first paragraph on one line, without a final full stop; empty without one.

    At most 1,024 characters, as for a `description` in a manifest.
    """
    text = getattr(handler, "__doc__", None)
    if not isinstance(text, str):
        return ""
    paragraph = inspect.cleandoc(text).partition("\n\n")[0]
    line = " ".join(paragraph.split())
    return line[:_LONGEST].removesuffix(".")
