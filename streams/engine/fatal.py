"""The one way this process ends by its own decision: at once, so that nothing after a fault is committed or acknowledged."""

import asyncio
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import structlog

EXIT_CODE = 70
Guilty = tuple[str, int]
"""Stage and partition number whose records brought the end about."""
witnesses: list[Callable[[Guilty | None], None]] = []
"""Told who is guilty, None when no record is, before the process ends (suspects.py)."""
log = structlog.get_logger()


def end(event: str, error: BaseException | None = None, *, guilty: Guilty | None = None, **fields: Any) -> NoReturn:
    """Log critical and end the process without any clean-up."""
    for witness in witnesses:
        witness(guilty)
    log.critical(event, exc_info=error, exit_code=EXIT_CODE, **fields)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(EXIT_CODE)


def fatal_errors(
    event: str, ignored: Callable[[], bool] = lambda: False, *, guilty: Guilty | None = None, **fields: Any
) -> Callable[[asyncio.Task[Any]], None]:
    """A done-callback: an error out of the task ends the process, unless `ignored` says that its partition was abandoned."""

    def done(task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None and not ignored():
            end(event, error, guilty=guilty, reason=str(error), **fields)

    return done
