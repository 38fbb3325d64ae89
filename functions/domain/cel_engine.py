"""CEL's engine without its command line.

`import cel` imports the command line too, and with it typer and prompt_toolkit: 0.14 s at each
start of a host, and 12 MB in each of its processes.
"""

import sys
from types import ModuleType

_COMMAND_LINE = "cel.cli"

_is_free = _COMMAND_LINE not in sys.modules
if _is_free:
    sys.modules[_COMMAND_LINE] = ModuleType(_COMMAND_LINE)
try:
    import cel
finally:
    if _is_free:
        del sys.modules[_COMMAND_LINE]

__all__ = ["cel"]
