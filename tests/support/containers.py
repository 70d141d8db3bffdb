"""Kafka and PostgreSQL in containers, for a test session on a machine where a Docker engine answers.

Image and environment are those of docker-compose.kafka.yml, the settings those of the local servers. Only an engine whose ports are this
machine's counts.
"""

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import docker
import requests
from docker.errors import DockerException, NotFound
from ruamel.yaml import YAML
from testcontainers.core.container import DockerContainer
from testcontainers.core.docker_client import get_docker_host

from deploy.local import kafka, postgres
from deploy.local.process import free_port

COMPOSE = Path(__file__).resolve().parents[2] / "docker-compose.kafka.yml"
DEFAULT_ENGINE = "unix:///var/run/docker.sock"
ANSWER_SECONDS = 1
START_SECONDS = 90.0


_SERVICES: Any = YAML(typ="safe").load(COMPOSE)["services"]
IMAGES: dict[str, str] = {name: said["image"] for name, said in _SERVICES.items()}


class NoContainerError(RuntimeError):
    """There is no container; the text says why."""


def container(name: str) -> contextlib.AbstractContextManager[str]:
    """A server of the compose file, `kafka` or `postgres`: its address, as the environment would name it.

    Entering raises NoContainerError where there can be none, and leaves nothing behind.
    """
    return _kafka() if name == "kafka" else _postgres()


@contextlib.contextmanager
def _kafka() -> Iterator[str]:
    port, inner = free_port(), 9092
    lines = (line.split("=", 1) for line in kafka.BEHAVIOUR.splitlines() if not line.startswith("#"))
    environment = {f"KAFKA_{name.upper().replace('.', '_')}": value for name, value in lines}
    environment |= {"KAFKA_ADVERTISED_LISTENERS": f"HOST://127.0.0.1:{port},INSIDE://kafka:19092", "KAFKA_HEAP_OPTS": "-Xmx512m"}
    # The broker speaks to itself by that name.
    with _running("kafka", inner, port, environment, lambda: kafka.answers(port), hostname="kafka"):
        yield f"127.0.0.1:{port}"


@contextlib.contextmanager
def _postgres() -> Iterator[str]:
    port, inner = free_port(), 5432
    user, password, name = (_SERVICES["postgres"]["environment"][f"POSTGRES_{part}"] for part in ("USER", "PASSWORD", "DB"))
    url = f"postgresql://{user}:{password}@127.0.0.1:{port}/{name}"
    command = ["postgres", *(part for setting in postgres.BEHAVIOUR.items() for part in ("-c", "=".join(setting)))]
    with _running("postgres", inner, port, {}, lambda: postgres.answers(url), command=command):
        yield url


@contextlib.contextmanager
def _running(service: str, inner: int, port: int, environment: dict[str, str], ready: Callable[[], bool], **more: Any) -> Iterator[None]:
    """The service of the compose file with a port of 127.0.0.1, once it is ready."""
    _find_engine()
    image, given = IMAGES[service], _SERVICES[service]["environment"]
    with contextlib.ExitStack() as stack:
        try:
            made = DockerContainer(image, env=given | environment, **more)
            made.ports[str(inner)] = ("127.0.0.1", port)  # type: ignore[assignment] # docker takes it; the library's own type forgot it
            stack.callback(_stop, made)
            made.start()
            _wait(made, ready)
        except (DockerException, requests.RequestException, OSError, RuntimeError) as error:
            raise NoContainerError(f"{image} did not start: {str(error).splitlines()[0]}") from error
        yield


def _find_engine() -> None:
    """Raises NoContainerError when no engine of this machine answers a ping at once."""
    host = get_docker_host() or DEFAULT_ENGINE
    address = urlsplit(host)
    if address.scheme != "unix" and address.hostname not in ("localhost", "127.0.0.1", "::1"):
        raise NoContainerError(f"the Docker engine at {host} is another machine's")
    try:
        with contextlib.closing(docker.from_env(environment={**os.environ, "DOCKER_HOST": host}, timeout=ANSWER_SECONDS)) as client:
            client.ping()
            with contextlib.suppress(NotFound):
                client.containers.get(socket.gethostname())
                raise NoContainerError(f"this is a container of the Docker engine at {host}, which opens ports elsewhere")
    except (DockerException, requests.RequestException, OSError, ValueError) as error:
        raise NoContainerError(f"no Docker engine answers at {host}") from error


def _wait(made: DockerContainer, ready: Callable[[], bool]) -> None:
    until = time.monotonic() + START_SECONDS
    while not ready():
        made.reload()
        if made.status == "exited":
            raise RuntimeError(f"it ended: {b' '.join(made.get_logs())[-300:].decode(errors='replace')}")
        if time.monotonic() > until:
            raise TimeoutError(f"it did not answer within {START_SECONDS:.0f} s")
        time.sleep(0.1)


def _stop(made: DockerContainer) -> None:
    # What cannot be stopped any more is the reaper's, which testcontainers starts beside the first container.
    with contextlib.suppress(DockerException, requests.RequestException, OSError):
        made.stop()
