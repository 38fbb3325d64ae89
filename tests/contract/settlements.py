"""The expected settlements of a call: on the wire, and in the streams of the runtime."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from runtime.broker.dead_letters import DeadLetter
from runtime.broker.mailbox import Mailbox
from runtime.broker.stored import parse_time_ns
from tests.contract.hosting import InProcess
from tests.contract.scene import Scene
from tests.support.host import letters_of, wait_for_letters
from tests.support.versions import has_message_schedules

STORE_AGAIN_S = 5.0
SWEEP_AGAIN_S = 10.0
QUICK_S = 1.0
"""What a test has the time to wait for; a longer wait is made short once it was seen."""


@dataclass(frozen=True, slots=True)
class Settlement:
    """The expected settlement of one call."""

    async def verify(self, scene: Scene, attempt: int) -> None:
        """Return when the settlement was observed.

        Raises:
            AssertionError: another settlement was observed.
        """
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Acknowledged(Settlement):
    """`+ACK`."""

    async def verify(self, scene: Scene, attempt: int) -> None:
        frame = await scene.next_settlement()
        assert (frame.verb, frame.text) == ("+ACK", "")
        scene.counted["acked"] += 1


@dataclass(frozen=True, slots=True)
class Again(Settlement):
    """`-NAK` with exactly this delay; for an ordered function nothing, since the message waits."""

    delay_s: float

    @property
    def is_waited_for(self) -> bool:
        """Whether the delay is short enough for the test to wait."""
        return self.delay_s <= QUICK_S

    async def verify(self, scene: Scene, attempt: int) -> None:
        scene.counted["retried"] += 1
        if scene.kind.is_ordered:
            await self._verify_in_place(scene)
            return
        frame = await scene.next_settlement()
        assert (frame.verb, frame.delay_s) == ("-NAK", self.delay_s)
        if not self.is_waited_for:
            assert (await scene.look())["num_ack_pending"] == 1
            await scene.wire.run_now(frame)

    async def _verify_in_place(self, scene: Scene) -> None:
        assert isinstance(scene.host, InProcess)
        assert await scene.host.wait_until_delayed() == self.delay_s
        await scene.expect_held()
        if not self.is_waited_for:
            await scene.host.end_delays()


@dataclass(frozen=True, slots=True)
class Parked(Settlement):
    """A copy in the mailbox until the message is due, then `+ACK`.

    Before nats-server 2.12: `-NAK`. For an ordered function: nothing, since the message waits.
    """

    delay_s: float
    reason: str

    async def verify(self, scene: Scene, attempt: int) -> None:
        if scene.kind.is_ordered or not has_message_schedules(scene.broker):
            await Again(self.delay_s).verify(scene, attempt)
            return
        frame = await scene.next_settlement()
        assert (frame.verb, frame.text) == ("+ACK", "")
        mailbox = Mailbox(scene.broker)
        [parked] = [each async for each in mailbox.list_parked(scene.name)]
        assert parked.reason == self.reason
        assert abs((parked.due_at - datetime.now(UTC)).total_seconds() - self.delay_s) < 10
        # The message uses no place, and was stored before the original was acknowledged.
        held = await scene.look()
        assert held["num_ack_pending"] == 0
        stored_ns = await scene.stored_at_ns("MAILBOX", parked.sequence)
        assert stored_ns < parse_time_ns(held["ack_floor"]["last_active"])
        scene.counted["parked"] += 1
        scene.place = scene.mailbox
        assert await mailbox.run_now(parked.sequence)


@dataclass(frozen=True, slots=True)
class Buried(Settlement):
    """A dead letter with the original, then `+TERM` with its reason."""

    code: str
    reason: str
    error_type: str
    traceback: Sequence[str] = ()
    secret: str = "a secret"

    async def verify(self, scene: Scene, attempt: int) -> None:
        frame = await scene.next_settlement()
        assert frame.verb == "+TERM"
        [letter] = await letters_of(scene.broker, scene.name)
        assert scene.matches(letter)
        assert (letter.code, letter.error_type) == (self.code, self.error_type)
        assert letter.attempts == attempt
        assert self.reason in letter.reason
        assert self.secret not in letter.reason
        assert all(part in letter.traceback for part in self.traceback)
        assert bool(letter.traceback) == bool(self.traceback)
        assert frame.text == f"{letter.code}: {letter.reason}"[:256]
        await self._expect_order(scene, letter, frame.text)
        scene.counted["dead"] += 1
        scene.letters += 1

    async def _expect_order(self, scene: Scene, letter: DeadLetter, reason: str) -> None:
        """Expect from JetStream that the copy was stored before the TERM, with its reason."""
        advisory = await scene.wire.advisory("terminated", scene.place)
        assert advisory["reason"] == reason
        stored_ns = await scene.stored_at_ns("DEAD_LETTERS", letter.sequence)
        assert stored_ns < parse_time_ns(advisory["timestamp"])


@dataclass(frozen=True, slots=True)
class Unburied(Settlement):
    """The dead letter could not be stored, so the message is delivered again later.

    Attributes:
        last: whether the stream accepts messages again afterwards.
    """

    last: bool = False

    async def verify(self, scene: Scene, attempt: int) -> None:
        scene.counted["retried"] += 1
        if scene.kind.is_ordered:
            assert isinstance(scene.host, InProcess)
            assert await scene.host.wait_until_delayed() == STORE_AGAIN_S
            await self._end_refusal(scene)
            await scene.host.end_delays()
            return
        frame = await scene.next_settlement()
        assert (frame.verb, frame.delay_s) == ("-NAK", STORE_AGAIN_S)
        await self._end_refusal(scene)
        await scene.wire.run_now(frame)

    async def _end_refusal(self, scene: Scene) -> None:
        assert (await scene.look())["num_ack_pending"] == 1
        assert not await letters_of(scene.broker, scene.name)
        if self.last and scene.refusal:
            await scene.refusal.end()


@dataclass(frozen=True, slots=True)
class Unanswered(Settlement):
    """No settlement: the process has died."""

    async def verify(self, scene: Scene, attempt: int) -> None:
        assert not scene.wire.unread(scene.home, scene.mailbox)


@dataclass(frozen=True, slots=True)
class Swept(Settlement):
    """JetStream's advisory, from which a host makes a dead letter."""

    async def verify(self, scene: Scene, attempt: int) -> None:
        advisory = await scene.wire.advisory("max_deliver", scene.place)
        assert advisory["deliveries"] == attempt
        if scene.refusal:
            # Not before it was tried in vain, and kept.
            frame = await scene.wire.next(("ADVISORIES", "sweeper"))
            assert (frame.verb, frame.delay_s) == ("-NAK", SWEEP_AGAIN_S)
            assert not await letters_of(scene.broker, scene.name)
            await scene.refusal.end()
            await scene.wire.run_now(frame)
        [letter] = await wait_for_letters(scene.broker, scene.name)
        swept = await scene.wire.next(("ADVISORIES", "sweeper"))
        assert (swept.verb, swept.text) == ("+ACK", "")
        assert scene.matches(letter)
        assert (letter.code, letter.attempts) == ("MAX_DELIVERIES", attempt)
        assert not scene.wire.unread(scene.home, scene.mailbox)
        scene.letters += 1


@dataclass(frozen=True, slots=True)
class HandedOver(Settlement):
    """A copy in the mailbox that uses up no attempt, then `+ACK`; the next host gets the copy."""

    async def verify(self, scene: Scene, attempt: int) -> None:
        frame = await scene.next_settlement()
        assert (frame.verb, frame.text) == ("+ACK", "")
        found = await scene.broker.api(
            "STREAM.MSG.GET.MAILBOX", {"last_by_subj": f"mailbox.ready.{scene.name}"}
        )
        acked = await scene.look()
        assert acked["num_ack_pending"] == 0
        stored_ns = parse_time_ns(found["message"]["time"])
        assert stored_ns < parse_time_ns(acked["ack_floor"]["last_active"])
        scene.place = scene.mailbox
        await scene.restart()


@dataclass(frozen=True, slots=True)
class Drained(Settlement):
    """`+ACK`, then the end of the host; another host continues."""

    async def verify(self, scene: Scene, attempt: int) -> None:
        await ACK.verify(scene, attempt)
        await scene.restart()


ACK = Acknowledged()
