"""One log for us and the libraries, on one stream, without secrets."""

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog
from pydantic import SecretStr

from streams.log import set_up_logging
from streams.yaml_lines import Hidden


@pytest.fixture
def out() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield io.StringIO()
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(out: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_an_event_is_one_line_of_json_with_its_fields(out: io.StringIO) -> None:
    set_up_logging("json", stream=out)
    structlog.get_logger().warning("dead letter", stage="process", offset=7, bytes=b"x")
    (event,) = lines(out)
    assert event["event"] == "dead letter" and event["stage"] == "process" and event["offset"] == 7 and event["level"] == "warning"


@pytest.mark.parametrize("form", ["json", "text"])
def test_secrets_are_masked_by_type_and_by_name(out: io.StringIO, form: str) -> None:
    set_up_logging(form, stream=out)
    log = structlog.get_logger()
    log.info("start", anything=SecretStr("hunter2"), other=Hidden("hunter2"), password="hunter2", api_key="hunter2", token="hunter2")
    log.info("start", inside={"key": Hidden("hunter2"), "list": [SecretStr("hunter2")]}, dsn="postgresql://u:hunter2@h/d")
    assert "start" in out.getvalue() and "hunter2" not in out.getvalue()


@pytest.mark.parametrize("form", ["json", "text"])
def test_what_libraries_say_and_tracebacks_are_scrubbed(out: io.StringIO, form: str) -> None:
    set_up_logging(form, stream=out)
    logging.getLogger("aiokafka").error("cannot connect with password=hunter2 for %s", "jane@example.com")
    try:
        raise ValueError("Authorization: Bearer hunter2hunter2hunter2")
    except ValueError:
        structlog.get_logger().exception("failed")
        logging.getLogger("faust").exception("failed too")
    text = out.getvalue()
    assert "cannot connect" in text and "failed too" in text and "ValueError" in text and "test_log.py" in text
    assert "hunter2" not in text and "jane@" not in text


def test_chatter_of_libraries_is_left_out(out: io.StringIO) -> None:
    set_up_logging("text", stream=out)
    logging.getLogger("aiokafka.consumer").info("Joined group")
    assert out.getvalue() == ""
