"""What modules log, whatever an earlier test set up: a logger that was used once is cached and hears of no new configuration."""

from collections.abc import MutableMapping
from types import ModuleType
from typing import Any

import pytest
import structlog


def record_logs(monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> list[MutableMapping[str, Any]]:
    """The list that the `log` of these modules fills from now on."""
    capture = structlog.testing.LogCapture()
    recorder = structlog.wrap_logger(structlog.PrintLogger(), processors=[capture], wrapper_class=structlog.make_filtering_bound_logger(0))
    for module in modules:
        monkeypatch.setattr(module, "log", recorder)
    return capture.entries
