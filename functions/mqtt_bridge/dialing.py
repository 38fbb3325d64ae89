"""Connects paho-mqtt's client to a broker, in a thread, as resolving and connecting block."""

import asyncio
import ssl

from paho.mqtt.client import Client
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from functions.mqtt_bridge.settings import BrokerSettings


async def dial(
    client: Client, settings: BrokerSettings, *, session_expiry_s: int, receive_maximum: int
) -> None:
    """Connect; returns when CONNECT is sent. A session of an expiry of 0 begins anew.

    Raises:
        OSError: of the network, of TLS, or of a file with certificates.
        ValueError: paho or the TLS library does not accept a value.
    """
    # No maximum packet size: for each larger message Mosquitto 2.0.11 takes one off the receive
    # maximum for good, so a few of them would stop the session.
    properties = properties_of(
        PacketTypes.CONNECT,
        SessionExpiryInterval=session_expiry_s,
        ReceiveMaximum=receive_maximum,
    )

    def connect() -> None:
        if settings.username:
            password = settings.password.get_secret_value() if settings.password else None
            client.username_pw_set(settings.username, password)
        if settings.tls:
            client.tls_set_context(_tls_of(settings))
        client.connect_timeout = settings.connect_timeout_s
        client.connect(
            settings.broker_host,
            settings.broker_port,
            settings.keep_alive_s,
            clean_start=not session_expiry_s,
            properties=properties,
        )

    dialing = asyncio.ensure_future(asyncio.to_thread(connect))
    try:
        await asyncio.shield(dialing)
    except asyncio.CancelledError:
        dialing.add_done_callback(lambda done: _discard(client, done))
        raise


def _discard(client: Client, dialed: "asyncio.Future[None]") -> None:
    """Close what was connected too late."""
    if not dialed.cancelled() and dialed.exception() is None:
        client.disconnect()


class _TlsSocket(ssl.SSLSocket):
    """Closes itself when its handshake fails, which paho leaves to the garbage collector."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise


def _tls_of(settings: BrokerSettings) -> ssl.SSLContext:
    context = ssl.create_default_context(
        cafile=str(settings.authorities) if settings.authorities else None
    )
    context.sslsocket_class = _TlsSocket
    if settings.client_certificate:
        context.load_cert_chain(settings.client_certificate)
    return context


def text_of(failure: Exception) -> str:
    """Why there is no connection, for a log."""
    if isinstance(failure, OSError) and failure.strerror:
        return failure.strerror
    return str(failure) or type(failure).__name__


def properties_of(kind: int, **values: object) -> Properties:
    """The properties of a packet; those that are None are left out.

    Args:
        kind: one of `PacketTypes`.
        values: by the names that paho gives them.
    """
    properties = Properties(kind)  # type: ignore[no-untyped-call]
    for name, value in values.items():
        if value is not None:
            setattr(properties, name, value)
    return properties


__all__ = ["dial", "properties_of", "text_of"]
