"""A device that answers commands by MQTT, and connects again after every loss."""

import json
import threading
from types import TracebackType
from typing import Any, Self

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

from tests.fault.traffic import TOKEN


class Device:
    """Runs each command once, and answers each copy that it gets: an answer may be lost.

    Attributes:
        executed: ids of commands, in the order in which they were run.
        copies: how many messages came.
    """

    def __init__(self, port: int, name: str) -> None:
        self.executed: list[str] = []
        self.copies = 0
        self._topic = f"tenant/fault/device/{name}"
        self._port = port
        self._subscribed = threading.Event()
        self._client = Client(CallbackAPIVersion.VERSION2, client_id=f"fault/{name}")
        self._client.username_pw_set(f"fault/{name}", TOKEN)
        self._client.reconnect_delay_set(1, 2)
        self._client.on_connect = self._on_connect
        self._client.on_message = self._on_message
        self._client.on_subscribe = self._on_subscribe

    def __enter__(self) -> Self:
        self._client.connect("127.0.0.1", self._port)
        self._client.loop_start()
        assert self._subscribed.wait(60), "the device could not subscribe"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    # paho defines the signatures.
    def _on_connect(self, client: Client, _data: Any, _flags: Any, _why: Any, _more: Any) -> None:
        client.subscribe(f"{self._topic}/commands", 1)

    def _on_subscribe(self, _client: Client, _data: Any, _id: int, _why: Any, _more: Any) -> None:
        self._subscribed.set()

    def _on_message(self, client: Client, _data: Any, message: MQTTMessage) -> None:
        self.copies += 1
        command_id = json.loads(message.payload)["command_id"]
        if command_id not in self.executed:
            self.executed.append(command_id)
        answer = {
            "command_id": command_id,
            "status": "succeeded",
            "result": {"ran": self.executed.index(command_id)},
            "provision_token": TOKEN,
        }
        client.publish(f"{self._topic}/commands/ack", json.dumps(answer), 1)
