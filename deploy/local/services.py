"""The local servers one command needs: those the environment does not name, started together and stopped with the command.

The folder is locked while its servers run, so two commands at once never stop each other's; what a killed command left is stopped first.
"""

import fcntl
import os
import shutil
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from deploy.local.kafka import Kafka
from deploy.local.postgres import Postgres
from deploy.local.process import LocalServiceError, Progress, quiet

KAFKA_VARIABLE = "KAFKA_BOOTSTRAP_SERVERS"
POSTGRES_VARIABLE = "DATABASE_URL"


class FolderInUseError(LocalServiceError):
    """Another command runs its servers in this folder."""


@dataclass(frozen=True)
class Endpoints:
    """Where the servers are: `bootstrap` as host:port, `database_url` as a libpq URI with a password. Empty when not asked for."""

    bootstrap: str
    database_url: str

    def __repr__(self) -> str:
        return f"Endpoints(bootstrap={self.bootstrap!r})"

    def environment(self) -> dict[str, str]:
        """The same as environment variables, for the processes that use them."""
        pairs = {KAFKA_VARIABLE: self.bootstrap, POSTGRES_VARIABLE: self.database_url}
        return {name: value for name, value in pairs.items() if value}


class LocalServices:
    """Kafka and PostgreSQL below `folder`, as a context manager or by start and stop.

    Where the environment names a server, that one is used and none is started. Ports are free ones unless given.
    `temporary` starts with no data and deletes the folder at the end.
    """

    def __init__(
        self, folder: Path, *, kafka_port: int | None = None, postgres_port: int | None = None, heap: str = "512m", temporary: bool = False
    ) -> None:
        self.folder = folder.resolve()
        self.kafka = Kafka(self.folder / "kafka", kafka_port, heap)
        self.postgres = Postgres(self.folder / "postgres", postgres_port)
        self._temporary = temporary
        self._lock: IO[str] | None = None

    def start(self, kafka: bool = True, postgres: bool = True, progress: Progress = quiet) -> Endpoints:
        """Start what is asked for and not named by the environment; returns when all of it answers.

        Raises FolderInUseError, or LocalServiceError after stopping what had been started.
        """
        bootstrap = os.environ.get(KAFKA_VARIABLE, "") if kafka else ""
        database_url = os.environ.get(POSTGRES_VARIABLE, "") if postgres else ""
        start_kafka, start_postgres = kafka and not bootstrap, postgres and not database_url
        if start_kafka or start_postgres:
            self._acquire()
            try:
                self._stop_leftovers(progress)
                if self._temporary:
                    self._delete_data()
                if start_postgres:
                    self.postgres.start(progress)
                    database_url = self.postgres.url
                if start_kafka:
                    self.kafka.start(progress)
                    bootstrap = self.kafka.bootstrap
            except BaseException:
                self.stop()
                raise
        return Endpoints(bootstrap, database_url)

    def stop(self) -> None:
        """Stop what was started, and give the folder back. May be called twice."""
        try:
            self.kafka.stop()
        finally:
            self.postgres.stop()
            if self._lock is not None:
                if self._temporary:
                    self._delete_data()
                    shutil.rmtree(self.folder, ignore_errors=True)
                self._lock.close()
                self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _acquire(self) -> None:
        while self._lock is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / "lock"
            lock = path.open("a+")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                lock.seek(0)
                holder = lock.read().strip() or "unknown"
                lock.close()
                raise FolderInUseError(
                    f"Another headrace command (pid {holder}) runs its Kafka and PostgreSQL in {self.folder}. "
                    "End it first, or use another folder."
                ) from None
            if not path.exists() or not os.path.samestat(path.stat(), os.fstat(lock.fileno())):
                lock.close()  # its holder deleted the folder between our open and our lock
                continue
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            self._lock = lock

    def _delete_data(self) -> None:
        self.postgres.delete()
        for service in (self.kafka, self.postgres):
            shutil.rmtree(service.folder, ignore_errors=True)

    def _stop_leftovers(self, progress: Progress) -> None:
        for name, service in (("Kafka", self.kafka), ("PostgreSQL", self.postgres)):
            if service.stop_leftover():
                progress(f"stopped the {name} that a killed command had left")


def exit_on_sigterm() -> None:
    """Make SIGTERM and SIGHUP end this process through its `with` blocks, as Ctrl-C does. Main thread only.

    Ctrl-C too is set: a shell starts what runs in its background with SIGINT ignored, and Python leaves that so.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: sys.exit(128 + received))
