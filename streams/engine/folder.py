"""The state folder and its lock: one process per folder, because two would write each other's stores."""

import fcntl
import os
from pathlib import Path

from models.errors import FatalError


class StateFolder:
    """Holds an exclusive lock from `lock` until the process ends or `release`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def lock(self) -> None:
        """Raises FatalError when another process works on this folder."""
        if self._descriptor is not None:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise FatalError(
                f"the state folder {self.path} is in use by process {owner}: stop it, or give this worker its own HEADRACE_STATE_DIR"
            ) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        self._descriptor = descriptor

    def store(self, table: str, partition: int) -> Path:
        """Folder of one partition of one table."""
        return self.path / table / str(partition)

    def release(self) -> None:
        """Give the folder up."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
