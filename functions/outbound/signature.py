"""Signs a delivery as Standard Webhooks 1.0.0 specifies.

Source: standard-webhooks/standard-webhooks, spec/standard-webhooks.md.
"""

import base64
import binascii
import hmac
from collections.abc import Sequence

from functions.domain.signing_keys import read_signing_key
from functions.domain.webhooks import SECRET_PREFIX


class Signer:
    """Signs with every key of an endpoint; a receiver accepts a request if one signature fits.

    Args:
        secrets: `whsec_` and base64, or base64 alone, each with the Unix time until which it signs;
            the newest first.
        signing_key: `whsk_` and base64, for a signature that receivers verify by a public key.

    Raises:
        ValueError: a key is not base64, or empty. The message does not quote it.
    """

    def __init__(
        self, secrets: Sequence[tuple[str, float]], signing_key: str | None = None
    ) -> None:
        self._keys = [(_decode(secret), until_s) for secret, until_s in secrets]
        self._private = read_signing_key(signing_key) if signing_key else None

    def sign(self, message_id: str, sent_at_s: int, body: bytes) -> dict[str, str]:
        """The headers with which a receiver verifies the sender of `body` and the time.

        Without a key there is no signature.

        Args:
            message_id: the same on every attempt, so that a receiver can recognize a repeat; no
                dots, since the signed content is joined with dots.
            sent_at_s: the time of this attempt in Unix seconds; receivers commonly tolerate five
                minutes.
            body: exactly the bytes that are sent.

        Raises:
            ValueError: `message_id` holds a dot.
        """
        if "." in message_id:
            raise ValueError(
                "a message id with a dot in it would make the signed content ambiguous"
            )
        content = b"%b.%d.%b" % (message_id.encode(), sent_at_s, body)
        signatures = [
            "v1," + base64.b64encode(hmac.digest(key, content, "sha256")).decode()
            for key, until_s in self._keys
            if sent_at_s < until_s
        ]
        if self._private is not None:
            signatures.append("v1a," + base64.b64encode(self._private.sign(content)).decode())
        headers = {"webhook-id": message_id, "webhook-timestamp": str(sent_at_s)}
        if signatures:
            headers["webhook-signature"] = " ".join(signatures)
        return headers


def _decode(secret: str) -> bytes:
    text = secret.removeprefix(SECRET_PREFIX)
    try:
        # Senders and receivers of the standard accept a secret without its padding.
        key = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not key:
        # `from None` is not enough: the library's message may quote the secret.
        raise ValueError("the signing secret is not base64, or empty")
    return key


__all__ = ["Signer"]
