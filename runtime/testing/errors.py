"""The errors of the test kit."""


class TestKitError(Exception):
    """A test uses the kit in a way that cannot work; the text says what to do instead."""

    __test__ = False


class NotAwaited(TestKitError):  # noqa: N818 - names what happened
    """A test called a method of a host without `await`."""
