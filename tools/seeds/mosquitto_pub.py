"""Publishes one MQTT message, with mosquitto_pub's arguments, where mosquitto_pub is missing."""

import argparse
import sys
import threading
from typing import Any

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

_TIMEOUT_S = 30.0


def main() -> int:
    """Publish, and return 0 when the broker accepted the connection and took the message."""
    given = _arguments().parse_args()
    client = Client(CallbackAPIVersion.VERSION2, client_id=given.id)
    if given.username is not None:
        client.username_pw_set(given.username, given.password)
    answers: list[str] = []
    answered = threading.Event()

    # paho defines the signature.
    def on_connect(_client: Client, _data: Any, _flags: Any, reason: Any, _more: Any) -> None:  # noqa: ANN401
        answers.append(str(reason))
        answered.set()

    client.on_connect = on_connect
    try:
        client.connect(given.host, given.port)
    except OSError as refused:
        sys.stderr.write(f"Error: {refused.strerror}\n")
        return 1
    client.loop_start()
    try:
        answered.wait(_TIMEOUT_S)
        if answers != ["Success"]:
            sys.stderr.write(f"Connection error: {', '.join(answers) or 'no answer'}\n")
            return 5
        client.publish(given.topic, given.message, given.qos).wait_for_publish(_TIMEOUT_S)
    finally:
        client.disconnect()
        client.loop_stop()
    return 0


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mosquitto_pub", add_help=False)
    parser.add_argument("-h", "--host", default="localhost")
    parser.add_argument("-p", "--port", type=int, default=1883)
    parser.add_argument("-u", "--username")
    parser.add_argument("-P", "--pw", dest="password")
    parser.add_argument("-i", "--id", default="")
    parser.add_argument("-t", "--topic", required=True)
    parser.add_argument("-m", "--message", required=True)
    parser.add_argument("-q", "--qos", type=int, default=0, choices=(0, 1, 2))
    return parser


if __name__ == "__main__":
    sys.exit(main())
