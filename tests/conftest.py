"""What every test may use, and which tests run: slow ones only with --long."""

import signal
import threading
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import structlog

from tests.support.services import chosen, database_url, kafka

__all__ = ["database_url", "kafka"]
hypothesis.settings.register_profile("untimed", parent=hypothesis.settings(), deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """A command that a test runs sets up logging, as for its process: the next test, whichever that is, begins without."""
    yield
    structlog.reset_defaults()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the tests marked slow too")
    parser.addoption("--no-containers", action="store_true", help="start local servers even where a Docker engine answers")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for name, whose in chosen.items():
        terminalreporter.write_line(f"{name}: {whose}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    if (told := getattr(session.config, "workeroutput", None)) is not None:  # one of several that run side by side
        told["chosen"] = chosen


def pytest_testnodedown(node: Any) -> None:
    chosen.update(getattr(node, "workeroutput", {}).get("chosen", {}))


def pytest_configure(config: pytest.Config) -> None:
    # SIGTERM ends the session as Ctrl-C does, through the fixtures that stop the servers.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--long"):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="slow: only with --long"))
