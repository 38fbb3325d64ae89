"""Fills a module's `Settings` from the manifest, without showing a value in a problem."""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from pydantic import BaseModel, SecretStr, ValidationError

from runtime.call.call_task import failure_of
from runtime.errors import Problem
from runtime.loader.module import LoadError
from runtime.manifest.document import UNRESOLVED
from runtime.manifest.positions import Path, Positions
from runtime.manifest.translation import holds_unresolved, suggest, translate

_HIDDEN = "**********"


def fill_settings(
    module: ModuleType, given: Mapping[str, Any], *, path: Path, positions: Positions
) -> tuple[BaseModel | None, list[Problem]]:
    """The module's settings, or the problems of the given ones. No problem shows a value.

    Raises:
        LoadError: the module's `Settings` is not a pydantic model, or does not exist.
    """
    model = getattr(module, "Settings", None)
    if model is None:
        if given:
            raise LoadError(
                f"module {module.__name__} has no Settings",
                "add `class Settings(BaseModel)` there, or remove `settings:`",
            )
        return None, []
    if not isinstance(model, type) or not issubclass(model, BaseModel):
        raise LoadError(
            f"{module.__name__}.Settings is not a pydantic model",
            "let it inherit from pydantic.BaseModel",
        )
    problems = _find_unknown(model, given, path, positions)
    try:
        filled = model.model_validate(_reveal(given))
    except ValidationError as invalid:
        known = {problem.field for problem in problems}
        found = translate(
            invalid.errors(), raw=_mask(given), kind=model, path=path, positions=positions
        )
        problems += [_redact(problem, given) for problem in found if problem.field not in known]
        return None, problems
    except BaseException as raised:  # noqa: BLE001 - a validator's own mistake, whatever it is
        failure = failure_of(raised, None)
        # A validator may fail on a value that was not found, which is reported already.
        if not holds_unresolved(given):
            problems.append(_explain_failure(model, failure, path, positions))
        return None, problems
    return (None if problems else filled), problems


def _find_unknown(
    model: type[BaseModel], given: Mapping[str, Any], path: Path, positions: Positions
) -> list[Problem]:
    if model.model_config.get("extra") == "allow":
        return []
    known = {
        str(alias)
        for name, field in model.model_fields.items()
        for alias in (name, field.alias, field.validation_alias)
        if alias is not None
    }
    return [
        Problem(
            positions.where(*path, name),
            positions.field(*path, name),
            "no such key",
            suggest(name, known),
        )
        for name in given
        if name not in known
    ]


def _explain_failure(
    model: type[BaseModel], failure: Exception, path: Path, positions: Positions
) -> Problem:
    # Only the type: the text may contain the given values.
    wrong = f"{model.__name__} raised {type(failure).__name__} when it was filled"
    return Problem(positions.where(*path), positions.field(*path), wrong, "correct its validators")


def _reveal(value: Any) -> Any:  # noqa: ANN401 - any YAML value
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, Mapping):
        return {key: _reveal(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_reveal(inner) for inner in value]
    return value


def _mask(value: Any) -> Any:  # noqa: ANN401 - any YAML value
    """The same shape with every value wrapped, so that no message quotes a value."""
    if isinstance(value, Mapping):
        return {key: _mask(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_mask(inner) for inner in value]
    if value is None or value is UNRESOLVED or isinstance(value, SecretStr):
        return value
    return SecretStr(str(value))


def _redact(problem: Problem, given: Mapping[str, Any]) -> Problem:
    wrong, remedy = problem.wrong, problem.remedy
    for secret in _secrets(given):
        wrong, remedy = wrong.replace(secret, _HIDDEN), remedy.replace(secret, _HIDDEN)
    return Problem(problem.where, problem.field, wrong, remedy)


def _secrets(value: object) -> list[str]:
    if isinstance(value, SecretStr):
        return [value.get_secret_value()]
    inner = value.values() if isinstance(value, Mapping) else value
    if isinstance(inner, str) or not hasattr(inner, "__iter__"):
        return []
    return [secret for item in inner for secret in _secrets(item)]
