"""Keeps a destination's secrets out of what its type's code raises and returns."""

import re
import traceback
from collections.abc import Sequence
from dataclasses import replace

from functions.outbound.receipt import Receipt

HIDDEN = "***"
# The value of an `Authorization` header, and no word such as "authentication".
_CREDENTIAL = re.compile(r"\b(basic|bearer) +[A-Za-z0-9._~+/=-]{16,}", re.IGNORECASE)
_SHORTEST_CREDENTIAL = len("basic ") + 16
_TEXT_CHARACTERS = 500
# A part of a secret that is hidden too. A shorter one tells little, and may equal a word.
_SHORTEST_PART = 8
_ELLIPSIS = re.compile(r"(\.\.\.|\u2026)")
_MAX_ELLIPSES = 100


class SendFailed(Exception):  # noqa: N818 - names what happened
    """An exception of a route type's `send`, without the destination's secrets."""


def without_secrets(failure: Exception, secrets: Sequence[str]) -> Exception:
    """The exception itself, or one in its place if its text or a cause's has a secret.

    The one in its place has the same type's name and the same traceback.
    """
    shown = "".join(traceback.format_exception(failure))
    if _hide(shown, secrets) == shown:
        return failure
    text = _hide(f"{type(failure).__name__}: {failure}", secrets)
    safe = SendFailed(text[:_TEXT_CHARACTERS]).with_traceback(failure.__traceback__)
    safe.__suppress_context__ = True
    return safe


def receipt_without_secrets(receipt: Receipt, secrets: Sequence[str]) -> Receipt:
    """The receipt, with `***` for each secret in its texts: some endpoints repeat the request."""
    reason = _without(receipt.reason, secrets)
    excerpt = receipt.excerpt and _without(receipt.excerpt, secrets)
    if (reason, excerpt) == (receipt.reason, receipt.excerpt):
        return receipt
    return replace(receipt, reason=reason, excerpt=excerpt)


def _hide(shown: str, secrets: Sequence[str]) -> str:
    """An exception's text; libraries shorten the values in theirs: `'the beg...the end'`."""
    # Texts and the ellipses between them, in turn.
    parts = _ELLIPSIS.split(shown, maxsplit=_MAX_ELLIPSES)
    last = len(parts) - 1
    for place in range(0, len(parts), 2):
        text = _without(parts[place], secrets)
        text = text if place == last else _without_end(text, secrets)
        parts[place] = text if place == 0 else _without_beginning(text, secrets)
    return "".join(parts)


def _without(text: str, secrets: Sequence[str]) -> str:
    for secret in secrets:
        if secret in text:
            text = text.replace(secret, HIDDEN)
    if len(text) < _SHORTEST_PART:
        return text
    # What was longer than its bound has been cut, perhaps within a secret.
    text = _without_end(text, secrets)
    if len(text) < _SHORTEST_CREDENTIAL:
        return text
    return _CREDENTIAL.sub(rf"\1 {HIDDEN}", text)


def _without_end(text: str, secrets: Sequence[str]) -> str:
    """The text without the first part of a secret at its end."""
    for secret in secrets:
        if len(secret) <= _SHORTEST_PART:
            continue
        beginning = secret[:_SHORTEST_PART]
        at = text.find(beginning, max(0, len(text) - len(secret) + 1))
        while at >= 0:
            if secret.startswith(text[at:]):
                return text[:at] + HIDDEN
            at = text.find(beginning, at + 1)
    return text


def _without_beginning(text: str, secrets: Sequence[str]) -> str:
    """The text without the last part of a secret at its beginning."""
    for secret in secrets:
        if len(secret) <= _SHORTEST_PART:
            continue
        end = secret[-_SHORTEST_PART:]
        at = text.rfind(end, 0, len(secret) - 1)
        while at >= 0:
            if secret.endswith(text[: at + _SHORTEST_PART]):
                return HIDDEN + text[at + _SHORTEST_PART :]
            at = text.rfind(end, 0, at + _SHORTEST_PART - 1)
    return text


__all__ = ["SendFailed", "receipt_without_secrets", "without_secrets"]
