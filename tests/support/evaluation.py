"""Evaluates expressions as the process does, in this one: for tests of what their values become."""

from collections.abc import Sequence

import structlog

from functions.domain.evaluation.evaluator import Evaluator
from functions.domain.evaluation.values import Answer, Ask, Outcome
from functions.domain.evaluation.worker import CompiledExpressions, evaluate
from functions.domain.expressions import MessageVariables


class EvaluatorHere(Evaluator):
    """Evaluates without a process, so nothing is stopped and no budget is charged."""

    def __init__(self) -> None:
        super().__init__(structlog.stdlib.get_logger())
        self._compiled = CompiledExpressions()

    async def evaluate(self, asks: Sequence[Ask]) -> list[Answer]:
        return [self._answer(ask) for ask in asks]

    def _answer(self, ask: Ask) -> Answer:
        message = MessageVariables(ask.variables)
        steps = tuple((place, step.form) for place, step in enumerate(ask.steps))
        texts = [step.text for step in ask.steps]
        outcome, values, step, reason, detail = evaluate(self._compiled, message, steps, texts)
        return Answer(Outcome(outcome), values, step, reason, detail)
