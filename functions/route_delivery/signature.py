"""Signs a delivery as Standard Webhooks 1.0.0 specifies.

Source: standard-webhooks/standard-webhooks, spec/standard-webhooks.md.
"""

from datetime import datetime

from standardwebhooks import Webhook
from standardwebhooks.webhooks import EmptyWebhookSecretError


def sign(secret: str, *, message_id: str, sent_at: datetime, body: str) -> dict[str, str]:
    """The three headers with which a receiver verifies the sender of `body` and the time.

    Args:
        secret: `whsec_` and base64, or base64 alone.
        message_id: the same on every attempt, so that a receiver can recognize a repeat; no dots,
            since the signed content is joined with dots.
        sent_at: the time of this attempt, aware UTC; receivers commonly tolerate five minutes.
        body: exactly the text that is sent.

    Raises:
        ValueError: the secret is not base64, or empty; or `message_id` holds a dot.
    """
    if "." in message_id:
        raise ValueError("a message id with a dot in it would make the signed content ambiguous")
    try:
        key = Webhook(secret)
    except (ValueError, EmptyWebhookSecretError):
        # `from None`, since the library's message may quote the secret.
        raise ValueError("the signing secret is not base64, or empty") from None
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(int(sent_at.timestamp())),
        "webhook-signature": key.sign(message_id, sent_at, body),
    }
