"""Endpoints for devices' client certificates, with common name `tenant_id/device_id`."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from uuid import UUID

import asyncpg
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import NameOID
from pydantic import BaseModel, StringConstraints

from functions.domain.device_certificates import UNREADABLE
from functions.domain.named_sql import read_queries
from functions.domain.paging import Page
from functions.management.devices import DeviceStatus, device_not_found
from functions.management.requests import DeviceRequest
from runtime import Context, Event, Reject

_QUERIES = read_queries(Path(__file__).with_name("certificates.sql"))


class RegisterCertificate(DeviceRequest):
    """A certificate in PEM form, without its key."""

    certificate_pem: Annotated[str, StringConstraints(max_length=16_384)]


class RevokeCertificate(DeviceRequest):
    """A request to revoke one of a device's certificates."""

    certificate_id: UUID


class Certificate(BaseModel):
    """A registered certificate."""

    certificate_id: UUID
    tenant_id: str
    device_id: str
    fingerprint_sha256: str
    status: DeviceStatus
    not_before: datetime
    not_after: datetime
    created_at: datetime


async def register_certificate(event: Event[RegisterCertificate], ctx: Context) -> Certificate:
    """Register a certificate for a device."""
    wanted = event.data
    certificate = _parse(wanted.certificate_pem)
    if certificate.names != [f"{wanted.tenant_id}/{wanted.device_id}"]:
        raise Reject("CERTIFICATE_NAME_MISMATCH", "The common name must be tenant_id/device_id.")
    try:
        row = await ctx.postgres.fetchrow(
            _QUERIES["insert"],
            wanted.tenant_id,
            wanted.device_id,
            certificate.fingerprint,
            certificate.not_before,
            certificate.not_after,
        )
    except asyncpg.ForeignKeyViolationError:
        raise device_not_found() from None
    except asyncpg.UniqueViolationError:
        raise Reject(
            "CERTIFICATE_EXISTS", "The certificate is registered already.", status=409
        ) from None
    return _certificate(row)


async def list_certificates(event: Event[DeviceRequest], ctx: Context) -> Page[Certificate]:
    """A device's certificates, newest first."""
    rows = await ctx.postgres.fetch(_QUERIES["list"], event.data.tenant_id, event.data.device_id)
    return Page(items=[_certificate(row) for row in rows])


async def revoke_certificate(event: Event[RevokeCertificate], ctx: Context) -> Certificate:
    """Revoke a certificate; revoking it again is not an error."""
    wanted = event.data
    row = await ctx.postgres.fetchrow(
        _QUERIES["revoke"], wanted.tenant_id, wanted.device_id, wanted.certificate_id
    )
    if row is None:
        raise Reject("CERTIFICATE_NOT_FOUND", "The device has no such certificate.", status=404)
    return _certificate(row)


class _Parsed(NamedTuple):
    names: list[str | bytes]
    fingerprint: str
    not_before: datetime
    not_after: datetime


def _parse(pem: str) -> _Parsed:
    try:
        certificate = x509.load_pem_x509_certificate(pem.encode())
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return _Parsed(
            [name.value for name in names],
            certificate.fingerprint(SHA256()).hex(),
            certificate.not_valid_before_utc,
            certificate.not_valid_after_utc,
        )
    except UNREADABLE:
        raise Reject(
            "CERTIFICATE_INVALID", "This is not an X.509 certificate in PEM form."
        ) from None


def _certificate(row: Any) -> Certificate:  # noqa: ANN401 - a row, whose columns the model checks
    return Certificate.model_validate(dict(row))
