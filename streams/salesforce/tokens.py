"""Refresh tokens at rest: AES-256-GCM, one file per connection, one holder at a time over all processes of the machine.

A refresh token that rotates is spent by its use, so whoever renews holds the lock, has the room on disk before asking, and has the new one
on disk before anybody uses what came with it. The clear text is in memory for one request and in no repr, log line or error. Several
machines need a folder that they share and that knows flock (NFSv4 does); else use a login without a refresh token.
"""

import base64
import binascii
import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from models.errors import PausedError, SettingsError, TemporaryError
from models.settings import Settings

VERSION = "v1"
IV_BYTES, TAG_BYTES = 12, 16
ROOM = 8192
"""Bytes taken on disk before a token is asked for; a grant is far smaller."""
LOCK_SECONDS, LOCK_EVERY = 45.0, 0.05


class SealError(ValueError):
    """What was sealed cannot be opened; says why, never what."""


class Keys:
    """Seals with the first key, opens with any. Each is 32 bytes."""

    def __init__(self, *keys: bytes) -> None:
        self._keys = {hashlib.sha256(key).hexdigest()[:8]: AESGCM(key) for key in keys}
        self._first = next(iter(self._keys))

    def __repr__(self) -> str:
        return f"Keys({', '.join(self._keys)})"

    @classmethod
    def of(cls, settings: Settings) -> "Keys | None":
        """Those of the settings; None where there are none."""
        if settings.token_keys is None:
            return None
        return cls(*(bytes.fromhex(key) for key in settings.token_keys.get_secret_value().split(",")))

    def seal(self, plain: bytes, about: str) -> str:
        """`v1.<id of the key>.<base64 of iv, tag, ciphertext>`; opens only with the same `about`."""
        iv = os.urandom(IV_BYTES)
        sealed = self._keys[self._first].encrypt(iv, plain, f"{VERSION}|{about}".encode())
        body = iv + sealed[-TAG_BYTES:] + sealed[:-TAG_BYTES]  # the library puts the tag behind
        return f"{VERSION}.{self._first}.{base64.b64encode(body).decode()}"

    def open(self, sealed: str, about: str) -> tuple[bytes, bool]:
        """The clear text, and whether it is sealed with the first key. Raises SealError."""
        version, _, rest = sealed.partition(".")
        key, dot, text = rest.partition(".")
        if version != VERSION or not dot:
            raise SealError(f"it is not of the form {VERSION}.<key>.<text> that this version of Headrace reads")
        if key not in self._keys:
            raise SealError("its key is none of those in HEADRACE_TOKEN_KEYS")
        try:
            body = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise SealError("it is damaged (no base64)") from None
        if len(body) < IV_BYTES + TAG_BYTES:
            raise SealError("it is cut off")
        iv, tag, cipher = body[:IV_BYTES], body[IV_BYTES : IV_BYTES + TAG_BYTES], body[IV_BYTES + TAG_BYTES :]
        try:
            return self._keys[key].decrypt(iv, cipher + tag, f"{VERSION}|{about}".encode()), key == self._first
        except InvalidTag:
            raise SealError("it was changed, or belongs to another connection") from None


@dataclass(frozen=True, slots=True)
class Grant:
    """What a connection may log in with. `seed`: print of the flow file's refresh_token when it was kept, "" where there was none."""

    refresh_token: str = field(repr=False)
    seed: str = ""
    at: int = 0


def print_of(secret: str) -> str:
    """Tells two secrets apart without being one: refresh tokens are long and random."""
    return hashlib.sha256(f"headrace seed {secret}".encode()).hexdigest()[:16]


class Held:
    """The grant of one connection, while its lock is held. `grant` None: none is kept."""

    def __init__(self, vault: "Vault", name: str) -> None:
        self._vault, self._name = vault, name
        self._path = vault.folder / f"{name}.token"
        self.grant, self.current = self._read()
        self._part: BinaryIO | None = None

    def make_room(self) -> None:
        """Before the token is spent: what cannot be kept must not be asked for. Raises TemporaryError (disk)."""
        try:
            handle = os.open(self._path.with_suffix(".part"), os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
            self._part = os.fdopen(handle, "r+b")
            self._part.write(b"\0" * ROOM)
            self._sync(self._part)
        except OSError as error:
            raise _unwritable(self._path, error) from None

    def keep(self, refresh_token: str, seed: str = "") -> None:
        """On disk when this returns, sealed with the first key. Raises TemporaryError (disk)."""
        if self._part is None:
            self.make_room()
        part = self._part
        if part is None:
            raise RuntimeError("no room was made")
        grant = Grant(refresh_token, seed, int(time.time()))
        try:
            part.seek(0)
            part.write(self._vault.keys.seal(orjson.dumps(asdict(grant)), self._name).encode())
            part.truncate()
            self._sync(part)
            part.close()
            self._path.with_suffix(".part").replace(self._path)
            folder = os.open(self._path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise _unwritable(self._path, error) from None
        self._part, self.grant, self.current = None, grant, True

    def close(self) -> None:
        """Give up the room that was not used."""
        if self._part is not None:
            with suppress(OSError):
                self._part.close()
                self._path.with_suffix(".part").unlink()

    def _read(self) -> tuple[Grant | None, bool]:
        try:
            sealed = self._path.read_bytes()
        except FileNotFoundError:
            return None, True
        except OSError as error:
            raise TemporaryError(f"the kept login {self._path} cannot be read ({error.strerror}): mend its rights") from None
        try:
            plain, current = self._vault.keys.open(sealed.decode(errors="replace").strip(), self._name)
            return Grant(**orjson.loads(plain)), current
        except (SealError, TypeError, ValueError) as error:
            why = str(error) if isinstance(error, SealError) else "it holds no grant"
            raise PausedError(f"the kept login {self._path} cannot be opened: {why}; set its key again, or run `headrace login`") from None

    @staticmethod
    def _sync(file: BinaryIO) -> None:
        file.flush()
        os.fsync(file.fileno())


class Vault:
    """The folder of kept grants of one installation. Blocking: for threads."""

    def __init__(self, folder: Path, installation: str, keys: Keys) -> None:
        self.folder, self.installation, self.keys = folder, installation, keys

    def __repr__(self) -> str:
        return f"Vault({str(self.folder)!r})"

    @classmethod
    def of(cls, settings: Settings) -> "Vault | None":
        """None while no key is set: nothing is ever kept in clear text."""
        keys = Keys.of(settings)
        return None if keys is None else cls(settings.tokens, settings.installation, keys)

    def path(self, connection: str) -> Path:
        """Where a connection's grant is kept."""
        return self.folder / f"{self.installation}.{connection}.token"

    @contextmanager
    def held(self, connection: str) -> Iterator[Held]:
        """The grant, for one holder at a time on this machine. Raises TemporaryError (disk, lock), PausedError (cannot be opened)."""
        path = self.path(connection).with_suffix(".lock")
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise _unwritable(path, error) from None
        try:
            _lock(handle, connection)
            held = Held(self, path.stem)
            try:
                yield held
            finally:
                held.close()
        finally:
            os.close(handle)


def need_vault(vault: Vault | None, connection: str) -> Vault:
    """Raises SettingsError that names the variable."""
    if vault is None:
        raise SettingsError(
            f"connection {connection} keeps a refresh token, and HEADRACE_TOKEN_KEYS is not set: make a key with `openssl rand -hex 32`"
        )
    return vault


def _lock(handle: int, connection: str) -> None:
    until = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise TemporaryError(f"another process renews the login of {connection} and does not come to an end") from None
            time.sleep(LOCK_EVERY)
        else:
            return


def _unwritable(path: Path, error: OSError) -> TemporaryError:
    return TemporaryError(f"the login cannot be kept in {path} ({error.strerror}): make room, or mend the rights of the folder")
