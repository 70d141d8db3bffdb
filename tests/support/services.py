"""The servers a test session uses: the environment's, else local ones, started at first use and stopped at the end of the session.

Local ones get the first folder of .headrace/test-N that no other session holds, so that what a killed session left is found and removed.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local import Endpoints, FolderInUseError, LocalServices

_FOLDERS = Path(__file__).resolve().parents[2] / ".headrace"
_MOST_SESSIONS = 16


def start_in_free_folder(kafka: bool, postgres: bool, parent: Path = _FOLDERS) -> tuple[LocalServices, Endpoints]:
    """Start what is asked for and the environment does not name, in the first free folder below `parent`."""
    name = "-".join(["test", *(["kafka"] if kafka else []), *(["postgres"] if postgres else [])])
    for number in range(_MOST_SESSIONS):
        services = LocalServices(parent / f"{name}-{number}", temporary=True)
        try:
            return services, services.start(kafka=kafka, postgres=postgres)
        except FolderInUseError:
            continue
    raise RuntimeError(f"{_MOST_SESSIONS} test sessions run in {parent} already.")


@pytest.fixture(scope="session")
def kafka() -> Iterator[str]:
    """host:port of a Kafka."""
    services, endpoints = start_in_free_folder(kafka=True, postgres=False)
    with services:
        yield endpoints.bootstrap


@pytest.fixture(scope="session")
def database_url() -> Iterator[str]:
    """URI of a PostgreSQL database in which the user may make schemas."""
    services, endpoints = start_in_free_folder(kafka=False, postgres=True)
    with services:
        yield endpoints.database_url
