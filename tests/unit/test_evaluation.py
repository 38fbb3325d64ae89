"""Expressions are evaluated in a process that can be stopped, within a budget per tenant."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest
import structlog

from functions.domain.evaluation.budget import Budgets, EvaluationLimits, QuickAsks
from functions.domain.evaluation.evaluator import Evaluator
from functions.domain.evaluation.values import Answer, Ask, Outcome, Step

SLOW = "||".join(f"metrics.name.matches('(a{{1,{50 + n}}}){{1,30}}b')" for n in range(22))
"""About six seconds, on 4000 characters."""
PAYLOAD = {"site": "s1", "metrics": {"temp": 21.5, "name": "a" * 100}}


def variables(payload: dict[str, Any] | None = None) -> dict[str, Any]:
    given = PAYLOAD if payload is None else payload
    return {
        "payload": given,
        "metrics": given.get("metrics", {}),
        "topic": "tenant/t/device/d/telemetry",
        "tenant_id": "t",
        "device_id": "d",
        "msg_type": "telemetry",
    }


def ask(text: str, tenant: str = "t", form: Any = "boolean", **payload: Any) -> Ask:
    return Ask(tenant, variables(payload or None), (Step(text, form),))


@pytest.fixture
async def evaluator() -> AsyncIterator[Evaluator]:
    made = Evaluator(structlog.stdlib.get_logger())
    yield made
    await made.close()


async def outcome(evaluator: Evaluator, *asks: Ask) -> list[Outcome]:
    return [answer.outcome for answer in await evaluator.evaluate(asks)]


async def test_every_kind_of_answer(evaluator: Evaluator) -> None:
    cases: list[tuple[Ask, Answer]] = [
        (ask("metrics.temp > 20.0"), Answer(Outcome.DONE, (True,))),
        (ask("metrics.temp > 30.0"), Answer(Outcome.DONE, (False,))),
        (ask("payload.site", form="key"), Answer(Outcome.DONE, ("s1",))),
        (ask("metrics", form="key"), Answer(Outcome.DONE, ("",))),
        (ask("payload.absent", form="key"), Answer(Outcome.DONE, ("",))),
        (
            ask("{'b': 1, 'a': [topic]}", form="json"),
            Answer(Outcome.DONE, ({"a": ["tenant/t/device/d/telemetry"], "b": 1},)),
        ),
        (ask("1 +"), Answer(Outcome.UNREADABLE, reason="it is not a CEL expression")),
    ]
    answers = await evaluator.evaluate([each for each, _ in cases])
    assert answers == [answer for _, answer in cases]
    missing, failed, no_boolean = await evaluator.evaluate(
        [ask("payload.absent > 1"), ask("metrics.name > 1"), ask("metrics.temp")]
    )
    assert (missing.outcome, missing.detail) == (Outcome.MISSING, "absent")
    assert (failed.outcome, failed.reason) == (Outcome.FAILED, "it failed with TypeError")
    assert "overload" in failed.detail
    assert no_boolean.reason == "it gave neither true nor false"


async def test_steps_end_with_the_first_that_is_false(evaluator: Evaluator) -> None:
    steps = (Step("metrics.temp > 20.0", "boolean"), Step("device_id", "key"))
    refused = (Step("metrics.temp > 30.0", "boolean"), Step("1 +", "key"))
    answers = await evaluator.evaluate([Ask("t", variables(), each) for each in (steps, refused)])
    assert answers == [Answer(Outcome.DONE, (True, "d")), Answer(Outcome.DONE, (False,))]


async def test_an_ask_that_takes_too_long_is_stopped_and_the_others_are_answered(
    evaluator: Evaluator,
) -> None:
    before = [ask("metrics.temp > 20.0", "healthy", metrics={"temp": n}) for n in range(50)]
    slow = ask(SLOW, "attacker", metrics={"name": "a" * 4000})
    after = [ask("metrics.temp > 20.0", "third", metrics={"temp": n}) for n in range(50)]
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0)
            ticks += 1

    ticking = asyncio.create_task(tick())
    answers = await evaluator.evaluate([*before, slow, *after])
    ticking.cancel()
    assert answers[50] == Answer(Outcome.STOPPED, reason="it took more than 0.1 s and was stopped")
    wanted = [(n > 20,) for n in range(50)]
    assert [answer.values for answer in answers[:50]] == wanted
    assert [answer.values for answer in answers[51:]] == wanted
    # The loop turned all the time: once more for each record would be a hundred.
    assert ticks > 1000


async def test_a_tenant_that_has_used_its_time_keeps_its_quick_filters_and_harms_nobody(
    evaluator: Evaluator,
) -> None:
    quick = ask("metrics.temp > 20.0", "attacker")
    assert await outcome(evaluator, quick) == [Outcome.DONE]
    # Again, as the first time counts the start of the engine.
    assert await outcome(evaluator, quick) == [Outcome.DONE]
    slow = [ask(f"{SLOW} || {n} > 1", "attacker", metrics={"name": "a" * 4000}) for n in range(20)]
    found = await outcome(evaluator, *slow, quick, ask("true", "healthy"))
    # 0.5 s at once, of which each costs 0.15, and what comes in meanwhile.
    assert set(found[:20]) == {Outcome.STOPPED, Outcome.OVER_BUDGET}
    assert found[:3] == [Outcome.STOPPED] * 3
    assert found[20:] == [Outcome.DONE, Outcome.DONE]


async def test_what_is_a_little_too_slow_is_cut_off_at_the_budget() -> None:
    limits = EvaluationLimits(burst_s=0.12, share=0.001)
    evaluator = Evaluator(structlog.stdlib.get_logger(), limits)
    wide = {"l": [[1]] * 3500}
    asks = [ask(f"size(payload.l) > {n}", wide=wide, l=wide["l"]) for n in range(300)]
    found = await outcome(evaluator, *asks)
    await evaluator.close()
    assert found[0] == Outcome.DONE
    assert found[-1] == Outcome.OVER_BUDGET
    assert Outcome.STOPPED not in found


async def test_what_many_tenants_use_together_is_bounded_too() -> None:
    limits = EvaluationLimits(burst_of_all_s=0.12, share_of_all=0.001)
    evaluator = Evaluator(structlog.stdlib.get_logger(), limits)
    wide = [[1]] * 3500
    asks = [ask("size(payload.l) > 1", f"t{n}", l=wide) for n in range(300)]
    found = await outcome(evaluator, *asks)
    await evaluator.close()
    assert found[0] == Outcome.DONE
    assert found[-1] == Outcome.OVER_BUDGET
    assert Outcome.STOPPED not in found


async def test_values_that_json_lacks_and_strange_messages_reach_the_engine(
    evaluator: Evaluator,
) -> None:
    deep: list[Any] = []
    for _ in range(60):
        deep = [deep]
    for payload in ({"big": 2**80}, {"half": "\ud800"}, {"inf": float("inf")}, {"deep": deep}):
        [answer] = await evaluator.evaluate(
            [Ask("t", variables(payload), (Step("true", "boolean"),))]
        )
        assert answer.outcome == Outcome.DONE
        [answer] = await evaluator.evaluate(
            [Ask("t", variables(payload), (Step("payload == 1", "boolean"),))]
        )
        lacks = "the message holds a value that expressions lack"
        assert answer.reason == (lacks if "half" in payload else "")


async def test_many_large_messages_are_evaluated_in_several_requests(evaluator: Evaluator) -> None:
    asks = [
        Ask(
            "t", variables({"n": n, "text": "x" * 8000}), (Step("payload.n >= 0", "boolean"),), 8000
        )
        for n in range(200)
    ]
    assert set(await outcome(evaluator, *asks)) == {Outcome.DONE}


async def test_a_process_that_is_killed_is_replaced_and_nothing_is_lost(
    evaluator: Evaluator,
) -> None:
    assert await outcome(evaluator, ask("true")) == [Outcome.DONE]
    process = evaluator._process._process
    assert process is not None
    os.killpg(process.pid, signal.SIGKILL)
    assert await outcome(evaluator, ask("true"), ask("false")) == [Outcome.DONE] * 2
    assert evaluator._process._process is not process


async def test_an_idle_process_ends_and_the_next_ask_starts_another(
    evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("functions.domain.evaluation.process._IDLE_S", 0.05)
    assert await outcome(evaluator, ask("true")) == [Outcome.DONE]
    process = evaluator._process._process
    assert process is not None
    assert await process.wait() == 0
    assert await outcome(evaluator, ask("true")) == [Outcome.DONE]


async def test_without_a_process_every_ask_is_unavailable_and_an_error_is_logged(
    evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    assert await outcome(evaluator, ask("true"), ask("false")) == [Outcome.UNAVAILABLE] * 2
    monkeypatch.undo()
    assert await outcome(evaluator, ask("true")) == [Outcome.DONE]


async def test_closing_answers_what_is_under_way(evaluator: Evaluator) -> None:
    waiting = asyncio.create_task(evaluator.evaluate([ask("true"), ask(SLOW)]))
    await asyncio.sleep(0)
    await evaluator.close()
    assert {answer.outcome for answer in await waiting} == {Outcome.UNAVAILABLE}


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_a_tenant_pays_back_what_it_has_used_and_what_is_usual_costs_nothing() -> None:
    clock = Clock()
    limits = EvaluationLimits(burst_s=0.5, share=0.1, burst_of_all_s=0.8, share_of_all=0.2)
    budgets = Budgets(limits, clock)
    budgets.charge("a", 3.0, 3.0)
    assert budgets.left_s("a") == 0.5
    budgets.charge("a", 0.6, 0.2)
    assert budgets.left_s("a") == pytest.approx(0.1)
    assert budgets.left_s("b") == pytest.approx(0.4), "all together may use 0.8 s"
    budgets.charge("a", 5.0, 0.0)
    assert budgets.left_s("a") == budgets.left_s("b") == 0.0
    clock.now_s += 26.0
    assert budgets.left_s("b") == 0.5
    assert budgets.left_s("a") == 0.0
    clock.now_s += 24.0
    assert budgets.left_s("a") == pytest.approx(0.1)


def test_the_tenants_that_are_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("functions.domain.evaluation.budget._MAX_TENANTS", 10)
    monkeypatch.setattr("functions.domain.evaluation.budget._MAX_KNOWN", 10)
    clock = Clock()
    budgets = Budgets(EvaluationLimits(), clock)
    quick = QuickAsks(0.001)
    for number in range(100):
        budgets.charge(f"t{number}", 0.001, 0.0)
        quick.learn(f"t{number}", (Step("true", "boolean"),), 0.0)
    assert len(budgets._used) <= 10
    assert len(quick._known) <= 10
    assert quick.has("t99", (Step("true", "boolean"),))
    quick.learn("t99", (Step("true", "boolean"),), 0.1)
    assert not quick.has("t99", (Step("true", "boolean"),))
