"""Test kit for authors of functions."""

from runtime.local.local_call import Settling
from runtime.local.recorded_effects import Sent
from runtime.testing.errors import NotAwaited, TestKitError
from runtime.testing.host import TestHost
from runtime.testing.journal import Decision
from runtime.testing.recorded import Case, recorded
from runtime.testing.unit import CallResult, call

__all__ = [
    "CallResult",
    "Case",
    "Decision",
    "NotAwaited",
    "Sent",
    "Settling",
    "TestHost",
    "TestKitError",
    "call",
    "recorded",
]
