"""A whole Headrace on this machine: servers, sandboxes and the processes of a user, each a process of its own, for the demo and the tests.

It only starts, asks, breaks and stops; it reads nothing out of models, streams or agents, so that what it shows is what a user would see.
"""

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from deploy.local.process import LocalServiceError, Progress, ServerProcess, free_port, quiet
from deploy.local.services import Endpoints, LocalServices
from deploy.sandbox import client

FLOW = Path(__file__).parent / "examples" / "demo.yaml"
READY_SECONDS = 60.0
SILENT_SECONDS = 15.0
ROLES = ("worker", "subscribe", "receive")


class Rig:
    """One installation with its own database, state folder and ports.

    folder       everything is kept below it; wiped at the start
    records      of the sandbox Salesforce at its beginning
    fields       custom fields of the sandbox org (YAML)
    hold         seconds the sandbox holds a poll without events
    environ      more environment variables for Headrace's processes
    """

    def __init__(
        self,
        folder: Path,
        *,
        records: int = 300,
        seed: int = 1,
        hold: float = 10.0,
        flow: Path = FLOW,
        fields: Path | None = None,
        partitions: int = 4,
        progress: Progress = quiet,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.folder, self.flow, self.progress = folder.resolve(), flow, progress
        self._sandbox = [
            "--records",
            str(records),
            "--seed",
            str(seed),
            "--hold",
            str(hold),
            *(["--fields", str(fields)] if fields else []),
        ]
        self.name = f"demo-{secrets.token_hex(3)}"
        self.services = LocalServices(self.folder / "services", temporary=True)
        self.ports = {role: free_port() for role in ("salesforce", "iterable", "receiver", *ROLES)}
        self.salesforce = f"http://localhost:{self.ports['salesforce']}"
        self.iterable = f"http://localhost:{self.ports['iterable']}"
        self.hooks = f"http://127.0.0.1:{self.ports['receiver']}/hooks"
        self.secret = "whsec_" + "aGVhZHJhY2UtZGVtby1zZWNyZXQ="  # opens nothing but this machine's own demo
        self.key = secrets.token_hex(16)
        self.processes: dict[str, ServerProcess] = {}
        self.database_url = ""
        self._server = ""
        self.environment: dict[str, str] = {
            "HEADRACE_INSTALLATION": self.name,
            "HEADRACE_PARTITIONS": str(partitions),
            "HEADRACE_STATE_DIR": str(self.folder / "state"),
            "HEADRACE_RECEIVER_PORT": str(self.ports["receiver"]),
            "HEADRACE_SESSION_TIMEOUT": "10",
            "HEADRACE_FLOW": str(self.flow),
            "SF_URL": self.salesforce,
            "ITERABLE_URL": self.iterable,
            "ITERABLE_API_KEY": self.key,
            "FORMS_SECRET": self.secret,
            **(environ or {}),
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def start(self, roles: Sequence[str] = ROLES) -> None:
        """Everything, in the order in which a person would; returns when the subscription and the worker are ready."""
        self.start_services()
        for role in roles:
            self.progress(f"starting headrace {role}")
            self.run(role)
        for role in roles:
            self.progress(f"waiting for headrace {role}")
            self.wait_ready(role)

    def start_services(self) -> None:
        """Kafka, PostgreSQL and the sandboxes, without Headrace."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for role in ("salesforce", "iterable", *ROLES):
            self._process(role).stop_leftover()
        self._spawn("salesforce", "sandbox", "salesforce", "--port", str(self.ports["salesforce"]), *self._sandbox)
        self._spawn("iterable", "sandbox", "iterable", "--port", str(self.ports["iterable"]), "--key", self.key)
        endpoints = self.services.start(progress=self.progress)
        self.environment |= endpoints.environment()
        self._own_database(endpoints)
        self.progress("waiting for the sandboxes")
        self.await_("the sandbox Salesforce", lambda: bool(self.ask("GET", "/sandbox/state")))
        self.await_("the sandbox Iterable", lambda: bool(self.ask("GET", "/sandbox/faults", target="iterable")))
        credentials = self.ask("GET", "/sandbox/credentials")
        self.environment |= {"SF_CLIENT_ID": credentials["client_id"], "SF_CLIENT_SECRET": credentials["client_secret"]}

    def run(self, role: str, *arguments: str, name: str | None = None, environ: Mapping[str, str] | None = None) -> ServerProcess:
        """Start `headrace <role>`; `name` sets a second one of a role apart (with a state folder and port of its own)."""
        more = dict(environ or {})
        if role in ROLES:
            port = self.ports.setdefault(name or role, free_port())
            more = {"HEADRACE_METRICS_PORT": str(port), "HEADRACE_STATE_DIR": str(self.state_folder(name or role))} | more
        if role == "subscribe" and not arguments:
            arguments = ("acme", "--from", "new")
        return self._spawn(name or role, role, *arguments, environ=more)

    def command(self, *arguments: str, timeout: float = 120.0) -> tuple[int, str]:
        """Run `headrace …` to its end: its exit code and what it printed."""
        done = subprocess.run(
            self._line(arguments),
            env=self._environ(),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            cwd=self.folder,
        )
        return done.returncode, done.stdout + done.stderr

    def ask(self, method: str, path: str, body: Any = None, *, target: str = "salesforce") -> Any:
        """A control request to a sandbox, which may be in a restart of its own. Raises client.SandboxError."""
        until = time.monotonic() + SILENT_SECONDS
        while True:
            try:
                return client.call(self.salesforce if target == "salesforce" else self.iterable, method, path, body)
            except client.SilentError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.1)

    def state_folder(self, name: str) -> Path:
        """Where the process of that name keeps its tables."""
        return self.folder / f"state-{name}"

    def kill(self, name: str) -> None:
        """kill -9 of the process that does the work; its parent starts it again."""
        pid = self.processes[name].pid
        if pid is None:
            raise LocalServiceError(f"{name} is not running")
        for child in psutil.Process(pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                child.send_signal(signal.SIGKILL)

    def ready(self, name: str) -> bool:
        """What /readyz of the process says."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[name]}/readyz", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def wait_ready(self, name: str, seconds: float = READY_SECONDS) -> None:
        """Until the process is ready; raises LocalServiceError with the end of its log."""

        def ready() -> bool:
            if (code := self.processes[name].exited()) is not None:
                raise LocalServiceError(f"headrace {name} ended with {code}:\n{self.processes[name].log_tail(30)}")
            return self.ready(name)

        self.await_(f"headrace {name}", ready, seconds)

    def await_(self, what: str, question: Callable[[], bool], seconds: float = READY_SECONDS) -> None:
        """Ask until it is true. Raises LocalServiceError when it never was."""
        until = time.monotonic() + seconds
        while True:
            with contextlib.suppress(client.SandboxError):
                if question():
                    return
            if time.monotonic() > until:
                logs = "\n".join(f"--- {name}\n{process.log_tail(15)}" for name, process in self.processes.items())
                raise LocalServiceError(f"{what} did not come within {seconds:.0f} s; the logs are in {self.folder}\n{logs}")
            time.sleep(0.1)

    def database(self) -> psycopg.Connection:
        """A connection to the target's database."""
        return psycopg.connect(self.database_url, autocommit=True)

    def stop(self) -> None:
        """Stop all that was started, Headrace first. May be called twice."""
        ours = [self.processes[name] for name in self.processes if name not in ("salesforce", "iterable")]
        for process in ours:
            if (pid := process.pid) is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
        for process in (*ours, *self.processes.values()):
            process.stop(25.0)
        if self._server:
            with contextlib.suppress(psycopg.Error), psycopg.connect(self._server, autocommit=True) as server:
                server.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(self.name)))
            self._server = ""
        self.services.stop()

    def _own_database(self, endpoints: Endpoints) -> None:
        with psycopg.connect(endpoints.database_url, autocommit=True) as server:
            server.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(self.name)))
        self._server = endpoints.database_url
        self.database_url = make_conninfo(endpoints.database_url, dbname=self.name)
        self.environment["DATABASE_URL"] = self.database_url

    def _process(self, name: str) -> ServerProcess:
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        return ServerProcess(name, folder, "deploy", signal.SIGTERM)

    def _spawn(self, name: str, *arguments: str, environ: Mapping[str, str] | None = None) -> ServerProcess:
        process = self.processes[name] = self._process(name)
        process.spawn(self._line(arguments), self._environ() | dict(environ or {}))
        return process

    def _line(self, arguments: tuple[str, ...]) -> list[str]:
        return [sys.executable, "-P", "-m", "deploy", *arguments]

    def _environ(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
        return kept | self.environment


def as_json(figures: Any) -> str:
    """For people and machines alike: indented, keys in order."""
    return json.dumps(figures, indent=2, sort_keys=True, default=str)


def as_line(what: object, most: int = 400) -> str:
    """Its text in one line, for a timeline."""
    return " ".join(str(what).split())[:most]
