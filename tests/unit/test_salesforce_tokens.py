"""Kept refresh tokens: sealed so that nothing but the right key opens them, never in clear text, never lost to a full disk or a rival."""

import base64
import os
import secrets
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from deploy.context import read_settings
from models.errors import PausedError, SettingsError, TemporaryError
from models.settings import Settings
from streams.salesforce import tokens
from streams.salesforce.tokens import IV_BYTES, TAG_BYTES, Keys, SealError, Vault, need_vault

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))
SECRET = "5Aep861TSESvWeug_the-refresh-token"


def parts(sealed: str) -> tuple[bytes, bytes, bytes]:
    """iv, tag, ciphertext."""
    body = base64.b64decode(sealed.split(".")[2])
    return body[:IV_BYTES], body[IV_BYTES : IV_BYTES + TAG_BYTES], body[IV_BYTES + TAG_BYTES :]


def vault(folder: Path, *keys: bytes) -> Vault:
    return Vault(folder, "t", Keys(*(keys or (KEY,))))


def kept(store: Vault, connection: str = "acme") -> str | None:
    with store.held(connection) as held:
        return None if held.grant is None else held.grant.refresh_token


def keep(store: Vault, token: str, connection: str = "acme") -> None:
    with store.held(connection) as held:
        held.make_room()
        held.keep(token)


GCM = [  # McGrew and Viega, The Galois/Counter Mode of Operation, appendix B, test cases 13 to 16 (256-bit keys, 96-bit iv)
    ("00" * 32, "00" * 12, "", "", "", "530f8afbc74536b9a963b4f1c4cb738b"),
    ("00" * 32, "00" * 12, "00" * 16, "", "cea7403d4d606b6e074ec5d3baf39d18", "d0d1c8a799996bf0265b98b5d48ab919"),
    (
        "feffe9928665731c6d6a8f9467308308" * 2,
        "cafebabefacedbaddecaf888",
        "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39",
        "feedfacedeadbeeffeedfacedeadbeefabaddad2",
        "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662",
        "76fc6ece0f4e1768cddf8853bb2d551b",
    ),
]


@pytest.mark.parametrize(("key", "iv", "plain", "about", "cipher", "tag"), GCM, ids=["empty", "zeros", "with more"])
def test_what_another_implementation_sealed_opens(
    monkeypatch: pytest.MonkeyPatch, key: str, iv: str, plain: str, about: str, cipher: str, tag: str
) -> None:
    keys = Keys(bytes.fromhex(key))
    found = keys._keys[keys._first]
    assert found.decrypt(bytes.fromhex(iv), bytes.fromhex(cipher + tag), bytes.fromhex(about)) == bytes.fromhex(plain)
    monkeypatch.setattr(os, "urandom", lambda count: bytes.fromhex(iv)[:count])
    ours = parts(keys.seal(bytes.fromhex(plain), "x"))
    assert (ours[0], ours[2]) == (bytes.fromhex(iv), bytes.fromhex(cipher))  # the tag depends on what it is about


def test_a_sealed_text_holds_iv_tag_and_ciphertext_in_this_order() -> None:
    keys = Keys(KEY)
    iv, tag, cipher = parts(keys.seal(SECRET.encode(), "acme"))
    assert (len(iv), len(tag), len(cipher)) == (12, 16, len(SECRET))
    assert keys._keys[keys._first].decrypt(iv, cipher + tag, b"v1|acme") == SECRET.encode()


def test_no_two_seals_share_an_iv() -> None:
    keys = Keys(KEY)
    assert len({parts(keys.seal(b"same", "acme"))[0] for _ in range(10_000)}) == 10_000


def test_a_text_that_was_touched_anywhere_is_refused() -> None:
    keys = Keys(KEY)
    sealed = keys.seal(SECRET.encode(), "acme")
    head, body = sealed.rsplit(".", 1)
    raw = base64.b64decode(body)
    for at in range(len(raw)):
        wrong = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
        with pytest.raises(SealError, match="changed"):
            keys.open(f"{head}.{base64.b64encode(wrong).decode()}", "acme")


def test_every_beginning_of_a_sealed_text_is_refused() -> None:
    keys = Keys(KEY)
    sealed = keys.seal(SECRET.encode(), "acme")
    for length in range(len(sealed)):
        with pytest.raises(SealError):
            keys.open(sealed[:length], "acme")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda s: s.replace("v1.", "v2."), "form"),
        (lambda s: s.replace("v1.", ""), "form"),
        (lambda _: "", "form"),
        (lambda s: s + "=", "base64|changed"),
        (lambda s: s.rsplit(".", 1)[0] + ".%%%", "base64"),
        (lambda s: s.rsplit(".", 1)[0] + ".", "cut off"),
        (lambda s: s.replace(s.split(".")[1], "00000000"), "key"),
        (lambda s: "v1." + "A" * 1_000_000, "form"),
    ],
)
def test_what_is_no_seal_of_ours_is_refused_with_the_reason(change: Callable[[str], str], why: str) -> None:
    keys = Keys(KEY)
    with pytest.raises(SealError, match=why):
        keys.open(change(keys.seal(b"x", "acme")), "acme")


def test_a_seal_opens_for_its_own_connection_only_and_not_with_another_key() -> None:
    sealed = Keys(KEY).seal(b"x", "acme")
    with pytest.raises(SealError, match="another connection"):
        Keys(KEY).open(sealed, "other")
    with pytest.raises(SealError, match="HEADRACE_TOKEN_KEYS"):
        Keys(OTHER).open(sealed, "acme")
    forged = sealed.replace(Keys(KEY)._first, Keys(OTHER)._first)
    with pytest.raises(SealError, match="changed"):
        Keys(OTHER).open(forged, "acme")


@pytest.mark.parametrize("key", ["a" * 63, "a" * 65, "g" + "a" * 63, "", "a" * 64 + ",", "a" * 64 + ", " + "b" * 64, "a" * 64 + "\n"])
def test_a_key_is_64_hex_characters_and_a_wrong_one_is_named_and_not_shown(key: str) -> None:
    with pytest.raises(SettingsError, match="HEADRACE_TOKEN_KEYS") as refused:
        read_settings(None, {"HEADRACE_TOKEN_KEYS": key})
    assert len(key) < 10 or key not in str(refused.value)


def test_a_key_may_be_written_in_either_case_and_is_in_no_repr() -> None:
    key = KEY.hex().replace("0", "a")
    low, high = (Keys.of(Settings(token_keys=SecretStr(k))) for k in (key.lower(), key.upper()))
    assert low is not None and high is not None
    assert high.open(low.seal(b"x", "a"), "a") == (b"x", True)
    settings = read_settings(None, {"HEADRACE_TOKEN_KEYS": key})
    shown = f"{settings!r} {low!r} {Vault.of(settings)!r}"
    assert key not in shown and key.upper() not in shown
    with pytest.raises(ValidationError) as refused:
        Settings(token_keys=SecretStr(key[1:]))
    assert key[1:] not in str(refused.value)


def test_without_a_key_nothing_is_kept_and_the_variable_is_named() -> None:
    assert Vault.of(Settings()) is None
    with pytest.raises(SettingsError, match="HEADRACE_TOKEN_KEYS"):
        need_vault(None, "acme")


def test_what_is_kept_is_found_again_and_stands_in_clear_text_nowhere(tmp_path: Path) -> None:
    store = vault(tmp_path / "new" / "folder")
    assert kept(store) is None
    keep(store, SECRET)
    keep(store, "other", "other")
    assert (kept(vault(store.folder)), kept(store, "other")) == (SECRET, "other")
    files = [path for path in store.folder.iterdir() if path.suffix != ".lock"]
    assert {path.name for path in files} == {"t.acme.token", "t.other.token"}
    assert all(SECRET.encode() not in path.read_bytes() and stat.S_IMODE(path.stat().st_mode) == 0o600 for path in files)
    with store.held("acme") as held:
        assert SECRET not in repr(held.grant)


def test_one_connections_file_in_anothers_place_is_refused(tmp_path: Path) -> None:
    store = vault(tmp_path)
    keep(store, SECRET)
    (tmp_path / "t.other.token").write_bytes((tmp_path / "t.acme.token").read_bytes())
    with pytest.raises(PausedError, match="another connection"):
        kept(store, "other")


@pytest.mark.parametrize("content", [b"", b"\0" * 8192, b"\xff" * 100, SECRET.encode(), b"v1.00000000.AAAA"])
def test_a_damaged_file_pauses_its_connection_with_what_to_do(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.acme.token").write_bytes(content)
    with pytest.raises(PausedError, match="headrace login") as refused:
        kept(vault(tmp_path))
    assert SECRET not in str(refused.value)


def test_an_older_key_still_reads_and_the_first_one_writes(tmp_path: Path) -> None:
    keep(vault(tmp_path, OTHER), SECRET)
    both = vault(tmp_path, KEY, OTHER)
    with both.held("acme") as held:
        assert held.grant is not None and not held.current
        held.keep(held.grant.refresh_token)
    assert kept(vault(tmp_path, KEY)) == SECRET
    with pytest.raises(PausedError, match="HEADRACE_TOKEN_KEYS"):
        kept(vault(tmp_path, OTHER))


def test_keys_change_under_load_without_a_failed_read_or_a_lost_token(tmp_path: Path) -> None:
    """Old everywhere; both read, old writes; both read, new writes. Each turn replaces the token it found, as rotation does."""
    keep(vault(tmp_path, OTHER), "0")
    turns = 8
    steps = [vault(tmp_path, OTHER, KEY), vault(tmp_path, KEY, OTHER)]

    def work(store: Vault) -> None:
        for _ in range(turns):
            with store.held("acme") as held:
                assert held.grant is not None
                held.make_room()
                held.keep(str(int(held.grant.refresh_token) + 1))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, steps * 2))
    keep(steps[1], kept(steps[1]) or "")
    assert kept(vault(tmp_path, KEY)) == str(turns * 4)


def test_what_cannot_be_kept_is_not_asked_for_and_the_old_one_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = vault(tmp_path)
    keep(store, SECRET)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", full)
        with store.held("acme") as held, pytest.raises(TemporaryError, match="No space left"):
            held.make_room()
    assert kept(store) == SECRET
    assert not list(tmp_path.glob("*.part"))


def test_room_that_was_not_used_leaves_what_was_kept(tmp_path: Path) -> None:
    store = vault(tmp_path)
    keep(store, SECRET)
    with store.held("acme") as held:
        held.make_room()
    assert kept(store) == SECRET
    assert not list(tmp_path.glob("*.part"))


def test_a_holder_that_never_ends_is_not_waited_for_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "LOCK_SECONDS", 0.0)
    store = vault(tmp_path)
    with store.held("acme"), pytest.raises(TemporaryError, match="another process"):
        kept(store)
    assert kept(store) is None


def test_a_folder_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(TemporaryError, match="mend the rights"):
        kept(vault(tmp_path / "file"))


def test_a_very_long_token_is_kept_whole(tmp_path: Path) -> None:
    long = secrets.token_urlsafe(60_000)
    keep(vault(tmp_path), long)
    keep(vault(tmp_path), "short")
    assert kept(vault(tmp_path)) == "short"
    keep(vault(tmp_path), long)
    assert kept(vault(tmp_path)) == long
