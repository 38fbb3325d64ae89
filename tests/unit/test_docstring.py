from runtime.loader.docstring import read_summary


def test_the_summary_is_the_first_paragraph_on_one_line_without_its_full_stop() -> None:
    def handler() -> None:
        """Counts the messages of a device,
        by day.

        Not this.
        """

    assert read_summary(handler) == "Counts the messages of a device, by day"


def test_a_handler_without_a_docstring_has_no_summary() -> None:
    def handler() -> None: ...

    assert read_summary(handler) == ""


def test_a_docstring_that_is_no_text_is_no_summary() -> None:
    def handler() -> None: ...

    handler.__doc__ = 5  # type: ignore[assignment]

    assert read_summary(handler) == ""


def test_a_long_summary_is_cut() -> None:
    def handler() -> None: ...

    handler.__doc__ = "x" * 2000

    assert len(read_summary(handler)) == 1024
