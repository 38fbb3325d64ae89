"""Test kit for authors of functions."""

from runtime.testing.errors import NotAwaited, TestKitError
from runtime.testing.host import TestHost
from runtime.testing.journal import Decision

__all__ = ["Decision", "NotAwaited", "TestHost", "TestKitError"]
