"""The one way this process ends by its own decision: at once, so that nothing after a fault is committed or acknowledged."""

import asyncio
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import structlog

EXIT_CODE = 70
log = structlog.get_logger()


def end(event: str, error: BaseException | None = None, **fields: Any) -> NoReturn:
    """Log critical and end the process without any clean-up."""
    log.critical(event, exc_info=error, exit_code=EXIT_CODE, **fields)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(EXIT_CODE)


def fatal_errors(event: str, ignored: Callable[[], bool] = lambda: False, **fields: Any) -> Callable[[asyncio.Task[Any]], None]:
    """A done-callback: an error out of the task ends the process, unless `ignored` says that its partition was abandoned."""

    def done(task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None and not ignored():
            end(event, error, reason=str(error), **fields)

    return done
