"""Evaluates expressions off the event loop, fairly between tenants."""

import asyncio
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

import structlog

from functions.domain.evaluation.budget import Budgets, EvaluationLimits, QuickAsks
from functions.domain.evaluation.process import ExpressionProcess, ProcessGone, Record
from functions.domain.evaluation.values import Answer, Ask, Outcome

_MAX_ASKS = 500
_MAX_BYTES = 500_000
_SAY_EVERY_S = 60.0
_OVER_BUDGET = Answer(
    Outcome.OVER_BUDGET, reason="the expressions of the tenant have used up their time"
)
_UNAVAILABLE = Answer(Outcome.UNAVAILABLE, reason="expressions cannot be evaluated at present")


class Evaluator:
    """Evaluates in a process of its own, which starts with the first ask.

    Asks that come while others are evaluated go together. They are evaluated in requests of at most
    500 asks and half a megabyte of messages, which bounds how long the event loop makes one: first
    the quick ones of all tenants, then the unknown and the slow ones. What a tenant uses beyond the
    usual is charged to its budget, and what exceeds the budget is not evaluated.

    Args:
        log: gets an error when there is no process, once a minute.
        limits: the bounds.
    """

    def __init__(
        self, log: structlog.stdlib.BoundLogger, limits: EvaluationLimits | None = None
    ) -> None:
        self.limits = limits or EvaluationLimits()
        self._log = log
        self._process = ExpressionProcess(self.limits.stop_s)
        self._budgets = Budgets(self.limits)
        self._quick = QuickAsks(self.limits.quick_s)
        self._waiting: list[_Pending] = []
        self._runner: asyncio.Task[None] | None = None
        self._said_at_s = -_SAY_EVERY_S

    async def evaluate(self, asks: Sequence[Ask]) -> list[Answer]:
        """An answer for each ask, in order. An ask never fails: its answer says what happened."""
        if not asks:
            return []
        call = _Call(len(asks))
        self._waiting += [_Pending(call, place, ask) for place, ask in enumerate(asks)]
        if self._runner is None:
            self._runner = asyncio.create_task(self._run())
        await call.done
        return call.answers

    async def close(self) -> None:
        """End the process. Asks under way are answered as unavailable."""
        runner = self._runner
        if runner is not None:
            runner.cancel()
            await asyncio.wait([runner])
            # A task that is cancelled before its first step has not answered them.
            self._give_up(())
        await self._process.stop()

    async def _run(self) -> None:
        queue: deque[_Pending] = deque()
        try:
            while self._waiting:
                waiting, self._waiting = self._waiting, []
                queue = self._in_order(waiting)
                while queue:
                    await self._serve(queue)
        except Exception:  # noqa: BLE001 - who asks must get an answer
            self._log.exception("Expressions were not evaluated")
        finally:
            # At once, and not in a callback of the task: an ask that comes before would wait.
            self._give_up(queue)

    def _give_up(self, queue: Iterable["_Pending"]) -> None:
        """Answer what is left when the task ends; nothing, if all went well."""
        left, self._waiting, self._runner = [*queue, *self._waiting], [], None
        for pending in left:
            pending.answer(_UNAVAILABLE)

    def _in_order(self, waiting: Iterable["_Pending"]) -> deque["_Pending"]:
        """Those of one tenant together, and quick ones before the others of all tenants."""
        quick: dict[str, list[_Pending]] = {}
        others: dict[str, list[_Pending]] = {}
        for pending in waiting:
            tenant_id, _, steps, _ = pending.ask
            pending.is_quick = self._quick.has(tenant_id, steps)
            kind = quick if pending.is_quick else others
            kind.setdefault(tenant_id, []).append(pending)
        lists = (*quick.values(), *others.values())
        return deque(pending for of_tenant in lists for pending in of_tenant)

    async def _serve(self, queue: deque["_Pending"]) -> None:
        """Evaluate the first asks of the queue in one request."""
        batch = self._take(queue)
        if not batch:
            return
        request = _Request(batch, self._budgets, self.limits)
        is_stopped = False
        try:
            records, is_stopped = await self._process.run(request.content, len(batch))
        except ProcessGone as gone:
            records = gone.records
            if not records and batch[0].was_sent:
                self._say(gone)
                for pending in batch:
                    pending.answer(_UNAVAILABLE)
                batch = []
        except asyncio.CancelledError:
            queue.extendleft(reversed(batch))
            raise
        self._settle(batch, records)
        left = batch[len(records) :]
        if is_stopped:
            self._stop(left.pop(0))
        for pending in left:
            pending.was_sent = True
        queue.extendleft(reversed(left))

    def _say(self, gone: ProcessGone) -> None:
        now_s = time.monotonic()
        if now_s - self._said_at_s < _SAY_EVERY_S:
            return
        self._said_at_s = now_s
        self._log.error(
            "Expressions of tenants are not evaluated: their process ends", reason=str(gone)
        )

    def _take(self, queue: deque["_Pending"]) -> list["_Pending"]:
        batch: list[_Pending] = []
        size_bytes = 0
        messages: set[int] = set()
        # Also bounds how many asks are answered here in one turn of the event loop.
        for _ in range(min(len(queue), _MAX_ASKS)):
            pending = queue.popleft()
            ask = pending.ask
            if not pending.is_quick and self._budgets.left_s(ask.tenant_id) < self.limits.stop_s:
                pending.answer(_OVER_BUDGET)
                continue
            if id(ask.variables) not in messages:
                messages.add(id(ask.variables))
                size_bytes += ask.size_bytes
            batch.append(pending)
            if size_bytes >= _MAX_BYTES:
                break
        return batch

    def _settle(self, batch: Sequence["_Pending"], records: Sequence[Record]) -> None:
        """Answer the asks that have a record, and charge their tenants."""
        for tenant_id, group in groupby(
            zip(batch, records, strict=False), lambda pair: pair[0].ask.tenant_id
        ):
            messages: dict[int, int] = {}
            spent_s, asks = 0.0, 0
            for pending, record in group:
                outcome, values, step, reason, detail, cpu_s = record
                ask = pending.ask
                if outcome == Outcome.OVER_BUDGET:
                    pending.answer(_OVER_BUDGET)
                    continue
                pending.answer(Answer(Outcome(outcome), values, step, reason, detail))
                self._quick.learn(tenant_id, ask.steps, cpu_s)
                messages[id(ask.variables)] = ask.size_bytes
                spent_s += cpu_s
                asks += 1
            usual_s = self.limits.usual_s(len(messages), sum(messages.values()), asks)
            self._budgets.charge(tenant_id, spent_s, usual_s)

    def _stop(self, pending: "_Pending") -> None:
        limits, ask = self.limits, pending.ask
        reason = f"it took more than {limits.stop_s:g} s and was stopped"
        pending.answer(Answer(Outcome.STOPPED, reason=reason))
        self._quick.learn(ask.tenant_id, ask.steps, limits.stop_s)
        self._budgets.charge(ask.tenant_id, limits.stop_s + limits.stop_costs_s, 0.0)


class _Call:
    """The answers of one call of `evaluate`."""

    def __init__(self, asks: int) -> None:
        self.answers = [_UNAVAILABLE] * asks
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._left = asks

    def answer(self, place: int, answer: Answer) -> None:
        self.answers[place] = answer
        self._left -= 1
        # Done already if the caller was cancelled.
        if not self._left and not self.done.done():
            self.done.set_result(None)


class _Pending:
    """An ask that waits for its answer."""

    __slots__ = ("_call", "_place", "ask", "is_quick", "was_sent")

    def __init__(self, call: _Call, place: int, ask: Ask) -> None:
        self._call = call
        self._place = place
        self.ask = ask
        self.is_quick = False
        self.was_sent = False

    def answer(self, answer: Answer) -> None:
        self._call.answer(self._place, answer)


class _Request:
    """A request to the process: each text and each message once."""

    def __init__(
        self, batch: Sequence[_Pending], budgets: Budgets, limits: EvaluationLimits
    ) -> None:
        self._texts: dict[str, int] = {}
        self._messages: dict[int, int] = {}
        self._variables: list[dict[str, Any]] = []
        groups = []
        # Each group may use what all of them together may use, so that is bounded apart.
        of_all_s = budgets.left_of_all_s()
        for tenant_id, group in groupby(batch, lambda pending: pending.ask.tenant_id):
            of_tenant = [pending.ask for pending in group]
            sizes = {id(ask.variables): ask.size_bytes for ask in of_tenant}
            usual_s = limits.usual_s(len(sizes), sum(sizes.values()), len(of_tenant))
            asks = [self._ask(ask) for ask in of_tenant]
            groups.append((budgets.left_s(tenant_id) + usual_s, asks))
            of_all_s += usual_s
        self.content = (list(self._texts), self._variables, groups, of_all_s)

    def _ask(self, ask: Ask) -> tuple[int, tuple[tuple[int, str], ...]]:
        texts = self._texts
        steps = tuple((texts.setdefault(text, len(texts)), form) for text, form in ask.steps)
        return self._message(ask.variables), steps

    def _message(self, variables: Mapping[str, Any]) -> int:
        number = self._messages.setdefault(id(variables), len(self._messages))
        if number == len(self._variables):
            self._variables.append(dict(variables))
        return number


__all__ = ["Evaluator"]
