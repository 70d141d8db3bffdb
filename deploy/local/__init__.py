"""Apache Kafka and PostgreSQL themselves, without Docker, for the demo and the tests.

Used only where the environment names no servers of its own. Everything lies below one folder and stops with the command that started it.
"""

from deploy.local.kafka import Kafka
from deploy.local.postgres import Postgres
from deploy.local.process import LocalServiceError
from deploy.local.services import Endpoints, FolderInUseError, LocalServices, exit_on_sigterm

__all__ = ["Endpoints", "FolderInUseError", "Kafka", "LocalServiceError", "LocalServices", "Postgres", "exit_on_sigterm"]
