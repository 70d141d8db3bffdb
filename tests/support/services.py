"""The servers a test session uses: the environment's, else containers where a Docker engine answers, else local ones.

Started at first use and stopped at the end of the session. Local ones get the first folder of .headrace/test-N that no other session holds,
so that what a killed session left is found and removed. A test that kills or suspends a server has a local one of its own instead, always.
"""

import asyncio
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import GroupCoordinatorNotAvailableError

from deploy.local import Endpoints, FolderInUseError, LocalServices
from deploy.local.services import KAFKA_VARIABLE, POSTGRES_VARIABLE

_FOLDERS = Path(__file__).resolve().parents[2] / ".headrace"
_MOST_SESSIONS = 16
_VARIABLES = {"kafka": KAFKA_VARIABLE, "postgres": POSTGRES_VARIABLE}
chosen: dict[str, str] = {}
"""Whose servers this session uses, and why; printed at its end."""


@contextlib.contextmanager
def server(name: str, containers: bool, parent: Path = _FOLDERS) -> Iterator[str]:
    """Of `kafka` host:port, of `postgres` a URI. `containers` False: not in one, whatever engine answers."""
    from tests.support.containers import IMAGES, NoContainerError, container  # not at the top: --fast need not pay for it

    with contextlib.ExitStack() as stack:
        if given := os.environ.get(_VARIABLES[name]):
            address, chosen[name] = given, f"{_VARIABLES[name]} of the environment"
        else:
            try:
                if not containers:
                    raise NoContainerError("--no-containers")
                address, chosen[name] = stack.enter_context(container(name)), f"container {IMAGES[name]}"
            except NoContainerError as why:
                services, endpoints = start_in_free_folder(kafka=name == "kafka", postgres=name == "postgres", parent=parent)
                stack.enter_context(services)
                address, chosen[name] = endpoints.bootstrap or endpoints.database_url, f"local ({why})"
        yield address


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


async def coordinator(address: str) -> None:
    """Until there is one."""
    admin = AIOKafkaAdminClient(bootstrap_servers=address)
    await admin.start()
    try:
        async with asyncio.timeout(60):
            while True:
                try:
                    await admin.find_coordinator("first")
                    return
                except GroupCoordinatorNotAvailableError:
                    await asyncio.sleep(0.2)
    finally:
        await admin.close()


@pytest.fixture(scope="session")
def kafka(pytestconfig: pytest.Config) -> Iterator[str]:
    """host:port of a Kafka that has a coordinator for groups: a fresh broker makes its topic of offsets for the first one who asks."""
    with server("kafka", not pytestconfig.getoption("--no-containers")) as address:
        asyncio.run(coordinator(address))
        yield address


@pytest.fixture(scope="session")
def database_url(pytestconfig: pytest.Config) -> Iterator[str]:
    """URI of a PostgreSQL database in which the user may make schemas."""
    with server("postgres", not pytestconfig.getoption("--no-containers")) as address:
        yield address
