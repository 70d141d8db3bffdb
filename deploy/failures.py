"""What a person sees when a command cannot do its work: one message and an exit code, never a traceback with a secret in it.

Faults of our own are logged with their traceback, scrubbed, and end the process with 1; a worker's child, which must not even
commit, ends itself with 70.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

import structlog

from models.errors import HeadraceError, SettingsError

COULD_NOT, WORDS = 1, 2


@contextmanager
def told() -> Iterator[None]:
    """Errors that leave the block become a message on stderr and SystemExit."""
    sys.excepthook = _fault
    try:
        yield
    except SettingsError as error:
        _say(error)
        raise SystemExit(WORDS) from None
    except HeadraceError as error:
        _say(error)
        raise SystemExit(COULD_NOT) from None
    except BrokenPipeError:  # `headrace status | head`
        sys.stderr.close()
        raise SystemExit(COULD_NOT) from None
    except _kafka_errors() as error:
        from models.scrub import scrub

        print(f"headrace: Kafka did not answer ({type(error).__name__}: {scrub(str(error))}); see KAFKA_BOOTSTRAP_SERVERS", file=sys.stderr)
        raise SystemExit(COULD_NOT) from None


def _kafka_errors() -> type[BaseException] | tuple[()]:
    """aiokafka's errors, if a command loaded it: an error of a module that was never imported cannot have been raised."""
    module = sys.modules.get("aiokafka.errors")
    found: type[BaseException] | tuple[()] = module.KafkaError if module is not None else ()
    return found


def _say(error: HeadraceError) -> None:
    lines = str(error).splitlines() or [type(error).__name__]
    for line in lines:
        print(line if len(lines) > 1 else f"headrace: {line}", file=sys.stderr)


def _fault(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    from streams.log import set_up_logging

    if not structlog.is_configured():
        set_up_logging()
    structlog.get_logger().critical("a fault of our own ended the command", exc_info=(kind, error, trace))
