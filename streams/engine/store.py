"""State of one partition of one table, on disk or in memory, always equal to its changelog up to a persisted offset.

Invariants: the disk holds committed values only. What a chunk changed is kept in memory (`stage`) and read from there until its
transaction is through; then it is written together with the persisted offset in one batch (`apply`). The persisted offset never passes
the changelog record of a transaction that is still open: several stages may write one table, each in its own transactions.

A disk that cannot be read is never repaired: it is wiped, at once or at the next start, and filled from the changelog.

Beside the table's own keys a changelog holds marks: how far a topic's partition was read when the state was so. Kafka forgets that when
a topic is made anew; the changelog does not (loss.py).
"""

import math
import shutil
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import rocksdict
import structlog

from models.errors import FatalError
from streams.engine.stage import Changes

META = b"\x00\x00headrace"  # no table key begins with two zero bytes
MARK = META + b"|"
POSITION = struct.Struct(">qd")
CACHE_BYTES = 64 << 20  # shared by all partitions of the process
BUFFER_BYTES = 8 << 20  # of one store
BUFFERS_BYTES = 48 << 20  # of all stores of the process
SURROUNDINGS = ("lock hold", "No space", "Permission denied", "Too many open files", "Read-only file", "Input/output error", "quota")
log = structlog.get_logger()


class DamagedError(FatalError):
    """What is on disk cannot be right; the store is wiped when it is opened next."""


def mark_key(topic: str) -> bytes:
    """Key of the mark of a topic; its value is the next offset to read, in decimal digits."""
    return MARK + topic.encode()


class Backend(Protocol):
    """Where the bytes are. `offset` is the changelog offset to read on from, `at` the epoch second at which that was its end."""

    def get_many(self, keys: list[bytes]) -> list[bytes | None]: ...
    def write(self, changes: Iterable[tuple[bytes, bytes | None]], offset: int, at: float) -> None: ...
    def position(self) -> tuple[int, float] | None: ...
    def items(self, begin: bytes = b"") -> Iterator[tuple[bytes, bytes]]: ...
    def wipe(self) -> None: ...
    def close(self) -> None: ...


class Memory:
    """A dict, for tests."""

    def __init__(self) -> None:
        self._data: dict[bytes, bytes] = {}
        self._position: tuple[int, float] | None = None

    def get_many(self, keys: list[bytes]) -> list[bytes | None]:
        return [self._data.get(key) for key in keys]

    def write(self, changes: Iterable[tuple[bytes, bytes | None]], offset: int, at: float) -> None:
        for key, value in changes:
            if value is None:
                self._data.pop(key, None)
            else:
                self._data[key] = value
        self._position = (offset, at)

    def position(self) -> tuple[int, float] | None:
        return self._position

    def items(self, begin: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        return iter(sorted(item for item in self._data.items() if item[0] >= begin))

    def wipe(self) -> None:
        self._data, self._position = {}, None

    def close(self) -> None:
        pass


class Disk:
    """RocksDB in a folder of its own; a write survives the death of the process.

    Opening wipes what is damaged. A method raises DamagedError where RocksDB finds that it is, FatalError where the machine is at fault.
    """

    _cache: rocksdict.Cache | None = None
    _buffers: rocksdict.WriteBufferManager | None = None

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._mark = folder.with_name(f"{folder.name}.damaged")  # beside it: RocksDB's own folder is RocksDB's
        self._db: Any = None
        try:
            if self._mark.exists():
                raise DamagedError("it was found damaged when it was last read")
            self._open()
        except DamagedError as error:
            log.warning("store wiped", folder=str(folder), reason=str(error))
            self.wipe()

    def _open(self) -> None:
        if Disk._cache is None:
            Disk._cache = rocksdict.Cache(CACHE_BYTES)
            Disk._buffers = rocksdict.WriteBufferManager(BUFFERS_BYTES, False)
        blocks = rocksdict.BlockBasedOptions()
        blocks.set_block_cache(Disk._cache)
        blocks.set_bloom_filter(10, False)
        options = rocksdict.Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_block_based_table_factory(blocks)
        options.set_write_buffer_size(BUFFER_BYTES)
        options.set_write_buffer_manager(Disk._buffers)
        options.set_max_open_files(64)
        options.set_keep_log_file_num(2)
        try:
            self._folder.parent.mkdir(parents=True, exist_ok=True)
            # Named, because for what is not named rocksdict takes the options it finds on disk, with a cache of its own for each store.
            self._db = rocksdict.Rdict(str(self._folder), options, column_families={"default": options})
        except Exception as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> Exception:
        """What an error means. RocksDB's binding knows one class for all of them; what is of another one is not RocksDB's."""
        said = str(error)
        if isinstance(error, OSError | rocksdict.DbClosedError) or any(sign in said for sign in SURROUNDINGS):
            return FatalError(f"the store in {self._folder} cannot be used: {said}; nothing is lost, mend what it says and start again")
        return self._damaged(said) if type(error) is Exception else error

    def _damaged(self, said: str) -> DamagedError:
        self._mark.touch()
        return DamagedError(f"the store in {self._folder} is damaged ({said}); opened again, it is wiped and filled from its changelog")

    def get_many(self, keys: list[bytes]) -> list[bytes | None]:
        try:
            found: list[bytes | None] = self._db.get(keys) if keys else []
        except Exception as error:
            raise self._failed(error) from error
        return found

    def write(self, changes: Iterable[tuple[bytes, bytes | None]], offset: int, at: float) -> None:
        batch = rocksdict.WriteBatch(raw_mode=True)
        for key, value in changes:
            if value is None:
                batch.delete(key)
            else:
                batch.put(key, value)
        batch.put(META, POSITION.pack(offset, at))
        try:
            self._db.write(batch)
        except Exception as error:
            raise self._failed(error) from error

    def position(self) -> tuple[int, float] | None:
        (raw,) = self.get_many([META])
        if raw is None:
            return None
        if len(raw) != POSITION.size:
            raise self._damaged(f"its persisted offset has {len(raw)} bytes")
        offset, at = POSITION.unpack(raw)
        if offset < 0 or not math.isfinite(at):
            raise self._damaged(f"its persisted offset is {offset}, of second {at}")
        return offset, at

    def items(self, begin: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        try:
            each = self._db.iter()
            each.seek(begin)
            while each.valid():
                if (key := each.key()) != META:
                    yield key, each.value()
                each.next()
            each.status()  # damage ends an iteration as the end does
        except Exception as error:
            raise self._failed(error) from error

    def wipe(self) -> None:
        self.close()
        try:
            if self._folder.is_dir():
                shutil.rmtree(self._folder)
            self._folder.unlink(missing_ok=True)
            self._mark.unlink(missing_ok=True)
        except OSError as error:
            raise FatalError(f"the store in {self._folder} cannot be wiped ({error.strerror}): delete the folder by hand") from None
        self._open()

    def close(self) -> None:
        try:
            if self._db is not None:
                self._db.close()
        except rocksdict.DbClosedError:
            pass
        except Exception as error:
            raise self._failed(error) from error


class TableStore:
    """One partition of one table, shared by the stages that declare it (stage.py: Store)."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._pending: dict[bytes, tuple[int, bytes | None]] = {}
        self._floors: dict[int, int] = {}
        self._tokens = 0
        self._end = 0
        self._loaded = False

    @property
    def position(self) -> tuple[int, float] | None:
        """Persisted offset and the time at which it was the changelog's end; None when empty. Raises DamagedError."""
        return self._backend.position()

    def mark(self, topic: str) -> int | None:
        """Next offset to read of this topic's partition when the state was as it is."""
        (raw,) = self.get_many([mark_key(topic)])
        return None if raw is None else int(raw)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Values in the order of the keys, uncommitted ones included."""
        values = self._backend.get_many(list(keys))
        if self._pending:
            pending = self._pending
            return [pending[key][1] if key in pending else value for key, value in zip(keys, values, strict=True)]
        return values

    def page(self, prefix: bytes, after: bytes, most: int) -> list[tuple[bytes, bytes]]:
        """See stage.py: Store. Uncommitted changes included."""
        begin = max(prefix, after + b"\0")
        fresh = {key: value for key, (_, value) in self._pending.items() if key >= begin and key.startswith(prefix)}
        found: dict[bytes, bytes] = {}
        for key, value in self._backend.items(begin):
            if not key.startswith(prefix) or len(found) == most:
                break
            if key not in fresh:
                found[key] = value
        found |= {key: value for key, value in fresh.items() if value is not None}
        return sorted(found.items())[:most]

    def stage(self, changes: Changes) -> int:
        """Make a chunk's changes readable before its transaction begins; the token goes to `apply`."""
        self._tokens = token = self._tokens + 1
        self._floors[token] = self._end  # whatever the transaction writes stands at or above what is known by now
        for key, value in changes:
            self._pending[key] = (token, value)
        return token

    def apply(self, token: int, changes: Changes, end: int | None) -> None:
        """The transaction is through and its changelog records end at `end`: write to the backend."""
        self._end = max(self._end, end or 0)
        del self._floors[token]
        for key, _ in changes:
            if (pending := self._pending.get(key)) is not None and pending[0] == token:
                del self._pending[key]
        self._backend.write(dict(changes).items(), min(self._floors.values(), default=self._end), time.time())

    def load(self, changes: Iterable[tuple[bytes, bytes | None]], position: int, at: float) -> None:
        """Recovery: changelog records and the position after them. `at` as in Backend: not now before the end is reached."""
        self._backend.write(changes, position, at)

    def loaded(self, end: int) -> None:
        """Recovery reached the changelog's end."""
        self._backend.write((), end, time.time())
        self._end, self._loaded = end, True

    def touch(self) -> None:
        """Say that the store is at its changelog's end now; only while it is ours."""
        if self._loaded and not self._floors:
            self._backend.write((), self._end, time.time())

    def wipe(self) -> None:
        """Forget everything; the changelog has it."""
        self._backend.wipe()

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Committed keys and values, marks among them."""
        return self._backend.items()

    def close(self) -> None:
        """Release the folder."""
        self._backend.close()
