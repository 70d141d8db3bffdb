"""Chance for the fault suite: a fresh seed each run, printed with a failure, repeated by HEADRACE_FAULT_SEED; a broker to kill."""

import asyncio
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from deploy.local import LocalServices
from deploy.local.services import KAFKA_VARIABLE

VARIABLE = "HEADRACE_FAULT_SEED"


@pytest.fixture
def chance() -> random.Random:
    """Random numbers of this test."""
    seed = int(os.environ.get(VARIABLE) or random.SystemRandom().randrange(10**9))
    print(f"to repeat: {VARIABLE}={seed}")
    return random.Random(seed)


@pytest.fixture
async def services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LocalServices]:
    """A local broker of this test's own, which it may kill, whatever the session uses."""
    monkeypatch.delenv(KAFKA_VARIABLE, raising=False)
    assert KAFKA_VARIABLE not in os.environ
    found = LocalServices(tmp_path / "services", temporary=True)
    await asyncio.to_thread(found.start, kafka=True, postgres=False)
    try:
        yield found
    finally:
        await asyncio.to_thread(found.stop)
