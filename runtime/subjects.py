"""Compares NATS subjects with `*` and `>` patterns. Pure functions over valid subjects.

Source: NATS documentation, "Subject-Based Messaging": `*` stands for exactly one token, a final `>`
for one or more.
"""

from itertools import zip_longest

HOST_INBOX = "_INBOX.runtime"
"""Prefix of the reply subjects of the host and of the operator's commands."""
BACKBONE_SUBJECTS = (
    *("routes.>", "notices.>", "polled.>", "republish.>"),
    *("downlinks.>", "device_events.>", "mqtt_bridge.>"),
    *("sms.status", "email.status", "webhooks.status"),
    # What the listener for MQTT delivers to devices. Their own messages have other last tokens.
    *("tenant.*.device.*.commands", "tenant.*.device.*.routed", "tenant.*.device.*.presence"),
    "tenant.*.device.*.shadow.>",
)
"""Subjects of the shipped manifests that only functions publish to."""
HOST_SUBJECTS = (
    *("mailbox.>", "dead_letters.>", "leases.>", "schedules.>", "_RUNTIME.>"),
    *BACKBONE_SUBJECTS,
)
"""Subjects that only hosts publish to."""
AUTH_REQUESTS = "$SYS.REQ.USER.AUTH"
"""Here a server asks who a client is. A request has the client's password. Source: NATS ADR-26."""
LONGEST_NAME = 255
"""The most characters of a stream's or consumer's name. Source: nats-server, JSMaxNameLen."""
_OUTSIDE = frozenset(" .*>/\\")


def overlaps(a: str, b: str) -> bool:
    """Whether some subject matches both patterns."""
    for left, right in zip_longest(a.split("."), b.split(".")):
        if left is None or right is None:
            return False
        if ">" in {left, right}:
            return True
        if left != right and "*" not in {left, right}:
            return False
    return True


def covers(outer: str, inner: str) -> bool:
    """Whether every subject that matches `inner` matches `outer` too."""
    for wide, narrow in zip_longest(outer.split("."), inner.split(".")):
        if wide is None or narrow is None:
            return False
        if wide == ">":
            return True
        if narrow == ">" or (wide not in {"*", narrow}):
            return False
    return True


def is_name(text: str) -> bool:
    """Whether a stream or a consumer may have this name, so that it is one part of a subject.

    Source: NATS ADR-6: no white space, no control character, no dot, wildcard or slash.
    """
    return 0 < len(text) <= LONGEST_NAME and text.isprintable() and not _OUTSIDE & set(text)


def matches(pattern: str, subject: str) -> bool:
    """Whether a subject without wildcards matches the pattern."""
    return covers(pattern, subject)
