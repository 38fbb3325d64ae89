"""Permissions of the users of the embedded nats-server.

Every process on the machine that can open a socket can be a client. The host and the operator's
commands use a generated password. A client without a user name may use subjects, streams, consumers
and micro services. It may not publish to the runtime's own subjects or to those on which the
shipped functions speak for the platform, and may not change their streams through the JetStream
API.

The permissions do not stop a malicious client that may create consumers: JetStream delivers to any
subject that a consumer or a pull request names, with the server's own rights. With
`RUNTIME_NATS_ANONYMOUS=none` clients without a user name are refused.
"""

from collections.abc import Iterable

from runtime.broker.leases import LEASES
from runtime.broker.stream_configs import ADVISORIES, DEAD_LETTERS, MAILBOX, SCHEDULES
from runtime.subjects import AUTH_REQUESTS, HOST_INBOX, HOST_SUBJECTS

ANONYMOUS_USER = "local"
SYSTEM_ACCOUNT = "SYS"

_MANAGEMENT = "management.>"
# nats-server's own, for its MQTT sessions.
_MQTT_STREAMS = ("$MQTT_msgs", "$MQTT_rmsgs", "$MQTT_sess", "$MQTT_qos2in", "$MQTT_out")
# Of the shipped manifests, those that only functions write and read. Clients read `REPUBLISHED`.
_BACKBONE_STREAMS = ("ROUTES", "NOTICES", "POLLED", "DOWNLINKS", "DEVICE_EVENTS", "MQTT_BRIDGE")
_HOST_STREAMS = (MAILBOX, DEAD_LETTERS, LEASES, SCHEDULES, ADVISORIES, *_MQTT_STREAMS)

# Requests that take messages from a stream or change it. Source: nats-server,
# `server/jetstream_api.go`.
_CHANGES = (
    *("STREAM.UPDATE.{}", "STREAM.DELETE.{}", "STREAM.PURGE.{}", "STREAM.RESTORE.{}"),
    *("STREAM.MSG.DELETE.{}", "STREAM.PEER.REMOVE.{}", "STREAM.LEADER.STEPDOWN.{}"),
    *("CONSUMER.DELETE.{}.>", "CONSUMER.PAUSE.{}.>", "CONSUMER.RESET.{}.>"),
    *("CONSUMER.UNPIN.{}.>", "CONSUMER.LEADER.STEPDOWN.{}.>", "CONSUMER.MSG.NEXT.{}.>"),
)
_CREATIONS = (
    *("STREAM.CREATE.{}", "CONSUMER.CREATE.{}", "CONSUMER.CREATE.{}.>"),
    "CONSUMER.DURABLE.CREATE.{}.>",
)


def anonymous_denied_publish() -> list[str]:
    """Subjects to which a client without a user name may not publish."""
    streams = (*_HOST_STREAMS, *_BACKBONE_STREAMS)
    return [
        *HOST_SUBJECTS,
        *(_MANAGEMENT, "$JS.EVENT.>", "$MQTT.>", AUTH_REQUESTS),
        *(f"$JS.API.{change.format(stream)}" for stream in streams for change in _CHANGES),
        # A script without a name sets the backbone's streams up: compose/nats/init-streams.sh.
        *(f"$JS.API.{making.format(name)}" for name in _HOST_STREAMS for making in _CREATIONS),
        # An acknowledgement, also in the form with domain and account.
        *(f"$JS.ACK.{stream}.>" for stream in streams),
        *(f"$JS.ACK.*.*.{stream}.>" for stream in streams),
    ]


def anonymous_denied_subscribe() -> list[str]:
    """Subjects of the host that a client without a user name may not subscribe to."""
    return [f"{HOST_INBOX}.>", "_RUNTIME.>", _MANAGEMENT, "$SYS.>"]


def listing(subjects: Iterable[str]) -> str:
    """Format the subjects as a list of nats-server's configuration, one a line."""
    return "[\n" + "".join(f'          "{subject}"\n' for subject in subjects) + "        ]"
