"""Describes for a person what a module or a server raised while a new version was started."""

from dataclasses import replace

from runtime.deployments.hooks import StartFailed
from runtime.errors import ConfigError, Unavailable
from runtime.loader import LoadFailure
from runtime.loader.failure import excerpt_of
from runtime.observe.logs import get_logger
from runtime.safe_text import name_of
from runtime.user_frames import where_of

log = get_logger("runtime.reload")


def failure_of(raised: Exception, function: str) -> LoadFailure:
    """Why the version before runs on. Without the exception's text, which may contain a secret."""
    if isinstance(raised, StartFailed):
        [problem] = raised.problems
        return LoadFailure.of([replace(problem, where=raised.where or problem.where)])
    if isinstance(raised, ConfigError):
        return LoadFailure.of(raised.problems)
    if isinstance(raised, Unavailable):
        remedy = "save the file again, or send SIGHUP, when it answers"
        return LoadFailure(f"function {function}", f"{raised.what} is unavailable", remedy)
    where = where_of(raised)
    log.error("A new version failed as it began", function=function, exc_info=raised)
    return LoadFailure(
        where or f"function {function}",
        f"it failed as it began: {name_of(raised)}",
        "correct the module; the log says more",
        excerpt_of(where),
    )


__all__ = ["failure_of"]
