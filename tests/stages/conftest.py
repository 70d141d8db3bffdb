"""What tests of stages share."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from models.settings import Settings
from tests.support.salesforce import Desk, installation, org


@pytest.fixture
async def settings(kafka: str, tmp_path: Path) -> AsyncIterator[Settings]:
    """An installation of its own with the topics of one Salesforce connection; a file that needs another has its own fixture."""
    async with installation(kafka, tmp_path) as found:
        yield found


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    """An org with some records; a file that needs another has its own fixture."""
    async with org(60) as found:
        yield found
