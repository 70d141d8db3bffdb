"""The state folder: one process at a time, because two would write each other's stores, and only what belongs to this installation."""

import fcntl
import json
import os
import shutil
from pathlib import Path

import structlog

from models.errors import FatalError

FORMAT = 2
"""Of what lies on disk: keys, values and the place of the persisted offset. Another one is rebuilt, never converted."""
log = structlog.get_logger()


class StateFolder:
    """Holds an exclusive lock from `lock` until the process ends (kill -9 too) or `release`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def lock(self) -> None:
        """Raises FatalError when another process works on this folder, or nobody can."""
        if self._descriptor is not None:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise self._unusable(error) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise FatalError(
                f"the state folder {self.path} is in use by process {owner}: stop it, or give this worker its own HEADRACE_STATE_DIR"
            ) from None
        except OSError as error:
            os.close(descriptor)
            raise self._unusable(error) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        self._descriptor = descriptor

    def claim(self, installation: str, partitions: int, cluster: str) -> None:
        """Make the locked folder this installation's. Raises FatalError when it is another one's.

        Stores that cannot be true (another number of partitions, another Kafka, another format, nobody knows whose) are deleted: the
        changelogs have everything.
        """
        identity = {"format": FORMAT, "installation": installation, "partitions": partitions, "cluster": cluster}
        found = self._identity()
        if found == identity:
            return
        if (owner := found.get("installation", installation)) != installation:
            raise FatalError(
                f"the state folder {self.path} belongs to installation {owner}, not to {installation}: set HEADRACE_STATE_DIR to a folder "
                f"of this installation's own, or delete it when {owner} is no more"
            )
        stores = [path for path in self.path.glob("*/[0-9]*") if (path / "IDENTITY").exists() or (path / "CURRENT").exists()]
        if stores:
            wrong = {name: found.get(name) for name, value in identity.items() if found.get(name) != value}
            log.warning("state folder wiped", folder=str(self.path), stores=len(stores), found=wrong, expected=identity)
        try:
            for path in stores:
                shutil.rmtree(path)
            self._write(json.dumps(identity))
        except OSError as error:
            raise self._unusable(error) from None

    def store(self, table: str, partition: int) -> Path:
        """Folder of one partition of one table."""
        return self.path / table / str(partition)

    def release(self) -> None:
        """Give the folder up."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _identity(self) -> dict[str, object]:
        """What the folder says it is; empty where it says nothing that can be read."""
        try:
            found = json.loads((self.path / "identity.json").read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _write(self, text: str) -> None:
        fresh = self.path / "identity.json.new"
        with fresh.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self.path / "identity.json")

    def _unusable(self, error: OSError) -> FatalError:
        return FatalError(
            f"the state folder {self.path} cannot be used ({error.strerror}): set HEADRACE_STATE_DIR to a folder on a local disk that "
            "this user may write"
        )
