"""Signs the HTTP exposure of endpoints, so that a gateway can tell a host's from anybody else's.

Every client of a NATS server may answer `$SRV.INFO`. A host signs what its manifest says about an
endpoint with a key that the hosts of an installation share, and a gateway serves only what is
signed, or what its own settings allow.
"""

import hashlib
import hmac
import json
from collections.abc import Mapping

SIGNATURE = "http.signature"
_SIGNED = (
    "function",
    "description",
    "http.method",
    "http.path",
    "http.auth",
    "http.status",
    "schema.request",
    "schema.response",
)


def sign_registration(key: str, subject: str, metadata: Mapping[str, str]) -> str:
    """The signature of an endpoint's HTTP exposure: HMAC-SHA256, in hexadecimal.

    Args:
        key: the key that hosts and gateway share.
        subject: the subject to which the gateway sends the endpoint's requests.
        metadata: the endpoint's metadata. What a gateway uses is signed: `http.…`, `schema.…`,
            `function` and `description`.
    """
    signed = json.dumps([subject, *(str(metadata.get(name)) for name in _SIGNED)])
    return hmac.new(key.encode(), signed.encode(), hashlib.sha256).hexdigest()


def is_registration(key: str, subject: str, metadata: Mapping[str, object]) -> bool:
    """Whether the metadata hold a valid signature by this key."""
    shown = metadata.get(SIGNATURE)
    texts = {name: value for name, value in metadata.items() if isinstance(value, str)}
    expected = sign_registration(key, subject, texts)
    return isinstance(shown, str) and hmac.compare_digest(shown.encode(), expected.encode())


__all__ = ["SIGNATURE", "is_registration", "sign_registration"]
