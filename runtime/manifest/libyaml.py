"""Parses YAML with libyaml, ten times as fast as PyYAML's own parser.

Raises ImportError when PyYAML was built without libyaml.
"""

from yaml.composer import Composer
from yaml.cyaml import CSafeLoader


class LibyamlLoader(Composer, CSafeLoader):
    """Parses in C and composes in Python.

    The composer of `CSafeLoader` itself recurses in C: a text that is nested 50,000 levels deep
    ends the process. Here it is a RecursionError, as with `SafeLoader`.
    """

    def __init__(self, text: str) -> None:
        CSafeLoader.__init__(self, text)
        Composer.__init__(self)


__all__ = ["LibyamlLoader"]
