"""Decides which announced endpoints a gateway may serve."""

from collections.abc import Collection, Mapping
from typing import Any

from pydantic import SecretStr

from runtime import is_registration

_RESERVED_PATH = ("api", "v1")
_RESERVED_SUBJECT = "management."


class RouteTrust:
    """Trusts endpoints that a host has signed, and subjects that the gateway's settings name.

    Every client of the NATS server may announce an endpoint, so an announcement alone is worth
    nothing: it could take a path of the management API and ask for no key.

    Args:
        key: the key by which hosts sign; None trusts no signature.
        unsigned_subjects: subjects, or subjects with `>` as last token, that need no signature.
    """

    def __init__(self, key: SecretStr | None, unsigned_subjects: Collection[str]) -> None:
        self._key = key.get_secret_value() if key else ""
        self._unsigned = tuple(unsigned_subjects)

    def is_signed(self, subject: str, metadata: Mapping[str, Any]) -> bool:
        """Whether a host with this key has announced the endpoint."""
        return bool(self._key) and is_registration(self._key, subject, metadata)

    def refuse_unsigned(self, subject: str, segments: tuple[str, ...]) -> str | None:
        """Why an endpoint without a valid signature is not served; None when it is."""
        if segments[:2] == _RESERVED_PATH or subject.startswith(_RESERVED_SUBJECT):
            return "it is not signed, and /api/v1 and management.> are reserved for signed ones"
        if any(_covers(allowed, subject) for allowed in self._unsigned):
            return None
        return (
            "no host with this gateway's RUNTIME_REGISTRATION_KEY has signed it, and "
            "unsigned_subjects does not name its subject"
        )


def _covers(allowed: str, subject: str) -> bool:
    if allowed == ">":
        return True
    if allowed.endswith(".>"):
        return subject.startswith(allowed[:-1])
    return allowed == subject
