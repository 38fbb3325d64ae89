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


class SendFailed(Exception):  # noqa: N818 - names what happened
    """An exception of a route type's `send`, without the destination's secrets."""


def without_secrets(failure: Exception, secrets: Sequence[str]) -> Exception:
    """The exception itself, or one in its place if its text or a cause's has a secret.

    The one in its place has the same type's name and the same traceback.
    """
    shown = "".join(traceback.format_exception(failure))
    if not any(secret in shown for secret in secrets):
        return failure
    text = f"{type(failure).__name__}: {failure}"
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
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


def _without(text: str, secrets: Sequence[str]) -> str:
    for secret in secrets:
        if secret in text:
            text = text.replace(secret, HIDDEN)
    if len(text) < _SHORTEST_CREDENTIAL:
        return text
    return _CREDENTIAL.sub(rf"\1 {HIDDEN}", text)


__all__ = ["SendFailed", "receipt_without_secrets", "without_secrets"]
