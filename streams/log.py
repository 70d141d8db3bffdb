"""How every process of ours logs: set up here once, to stderr, with the libraries' own loggers led through the same door.

A secret must not leave through a log line: fields that are named like one are masked, and what others wrote (messages of libraries,
tracebacks) is scrubbed. Our own events name no remote text that was not scrubbed before.
"""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, Literal, TextIO

import orjson
import structlog
from pydantic import SecretStr
from structlog.types import Processor

from models.scrub import NAMES, scrub
from streams.yaml_lines import Hidden

MASK = "**********"
SECRET_NAMES = frozenset(NAMES.replace("[-_ ]?", "_").replace("r?d", "rd").split("|")) | {
    "password",
    "client_secret",
    "secrets",
    "key_file",
}
LIBRARIES = {
    "faust": "WARNING",
    "mode": "WARNING",
    "aiokafka": "WARNING",
    "aiohttp": "WARNING",
    "aiosfstream_ng": "WARNING",
    "aiocometd_ng": "WARNING",
    "asyncio": "WARNING",
    "urllib3": "WARNING",
}
TRACE_CHARACTERS = 8000


def set_up_logging(form: Literal["text", "json"] | str = "text", *, stream: TextIO | None = None, level: str = "INFO") -> None:
    """Once per process, by the front door. `form` is HEADRACE_LOG_FORMAT; to stderr, so that stdout stays for answers."""
    out = stream or sys.stderr
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _mask,
    ]
    if form == "json":
        renderer: Processor = structlog.processors.JSONRenderer(serializer=_json)
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=out.isatty(), pad_event_to=0, sort_keys=False)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level)),
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    handler = logging.StreamHandler(out)
    handler.addFilter(lambda record: record.levelno > logging.INFO or not str(record.msg).startswith("[^"))  # each service of Faust
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.ExtraAdder(allow=()), *shared, _foreign],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name, least in LIBRARIES.items():
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(least)


def _json(event: Any, **_: object) -> str:
    return orjson.dumps(event, default=_plain, option=orjson.OPT_PASSTHROUGH_SUBCLASS | orjson.OPT_NON_STR_KEYS).decode()


def _plain(value: object) -> object:
    if isinstance(value, Hidden):
        return MASK
    return str.__str__(value) if isinstance(value, str) else dict(value) if isinstance(value, dict) else repr(value)


def _mask(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for name, value in event.items():
        if isinstance(value, SecretStr | Hidden) or (name.lower() in SECRET_NAMES and value is not None):
            event[name] = MASK
    if (trace := event.get("exception")) is not None:
        event["exception"] = scrub(str(trace), TRACE_CHARACTERS) if "\n" not in str(trace) else _scrub_lines(str(trace))
    return event


def _foreign(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A record of a library: its message is text we know nothing of."""
    event["event"] = scrub(str(event.get("event", "")), 1000)
    if (record := event.get("_record")) is not None:
        event["logger"] = record.name
    return event


def _scrub_lines(trace: str) -> str:
    return "\n".join(f"{line[: len(line) - len(line.lstrip())]}{scrub(line)}" for line in trace[-TRACE_CHARACTERS:].splitlines())
