"""What Salesforce says, and what it means: logins, REST errors, errors of the stream, stored positions. And what is never shown."""

import asyncio
import time
from pathlib import Path
from typing import Any

import jwt
import orjson
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from pydantic import SecretStr

from models.errors import FatalError, PausedError, PermanentError, SettingsError, TemporaryError
from models.flow import Salesforce, channel_sobject
from streams.salesforce.auth import BURST, Login
from streams.salesforce.cometd import PositionRefusedError, SessionLostError, verdict
from streams.salesforce.limits import LimitReachedError
from streams.salesforce.oauth import Token, parse_token, refusal, second_of, skew_of
from streams.salesforce.positions import Position
from streams.salesforce.rest import ID, check_id, check_name, classify, join, split_fields
from streams.salesforce.retry import Backoff

SECRET = "s3cr3t-of-the-app"


def config(**auth: Any) -> Salesforce:
    known = {"flow": "client_credentials", "client_id": "key", "client_secret": SecretStr(SECRET)} | auth
    return Salesforce.model_validate({"type": "salesforce", "url": "https://acme.my.salesforce.com", "auth": known})


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, {"error": "invalid_grant", "error_description": "user hasn't approved this consumer"}, PausedError),
        (400, {"error": "invalid_client_id", "error_description": "client identifier invalid"}, PausedError),
        (401, {"error": "invalid_client"}, PausedError),
        (400, {"error": "inactive_org"}, PausedError),
        (400, {"error": "rate_limit_exceeded"}, TemporaryError),
        (503, {"error": "server_error"}, TemporaryError),
        (503, None, TemporaryError),
        (404, "<html>", TemporaryError),
        (400, [], TemporaryError),
    ],
)
def test_a_refused_login_is_classed_by_what_can_be_done(status: int, body: Any, kind: type[Exception]) -> None:
    assert type(refusal(status, body)) is kind


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        "x",
        {},
        {"access_token": "t"},
        {"access_token": 5, "instance_url": "https://x"},
        {"access_token": "t", "instance_url": "ftp"},
    ],
)
def test_a_reply_without_a_token_is_no_token(body: Any) -> None:
    with pytest.raises(TemporaryError):
        parse_token(body)


def test_only_token_and_instance_are_needed() -> None:
    assert parse_token({"access_token": "00Dx0000000BV7z!x", "instance_url": "https://x/"}) == Token(
        "00Dx0000000BV7z!x", "https://x", "00Dx0000000BV7z"
    )
    identity = {"access_token": "t", "instance_url": "https://x", "id": "https://login.salesforce.com/id/00Dx0000000BV7zAAA/005"}
    assert parse_token(identity).org == "00Dx0000000BV7z"


async def test_many_who_ask_cause_one_login_and_a_storm_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    login, now, logins = Login("acme", config(), clock=lambda: now[0]), [100.0], []

    async def ask(form: dict[str, str]) -> Token:
        logins.append(form["grant_type"])
        await asyncio.sleep(0)
        return Token(f"t{len(logins)}", "https://x", "")

    monkeypatch.setattr(login, "_ask", ask)
    assert len({(await t).value for t in [asyncio.ensure_future(login.token()) for _ in range(20)]}) == 1
    for _ in range(BURST - 1):
        login.reject(await login.token())
        await login.token()
    login.reject(await login.token())
    with pytest.raises(TemporaryError) as stopped:
        await login.token()
    assert stopped.value.retry_after
    assert len(logins) == BURST
    now[0] += 5
    await login.token()
    assert len(logins) == BURST + 1


async def test_a_late_rejection_of_an_old_token_does_not_cost_the_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    login = Login("acme", config())
    made: list[Token] = []

    async def ask(form: dict[str, str]) -> Token:
        made.append(Token(f"t{len(made)}", "https://x", ""))
        return made[-1]

    monkeypatch.setattr(login, "_ask", ask)
    old = await login.token()
    login.reject(old)
    new = await login.token()
    login.reject(old)
    assert await login.token() is new


def test_the_assertion_is_signed_short_lived_and_for_this_org(tmp_path: Path) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "acme.pem").write_bytes(pem)
    login = Login("acme", config(flow="jwt", username="ops@acme.example", key_file="acme.pem", client_secret=None), tmp_path)
    form = login._form()
    claims = jwt.decode(form["assertion"], key.public_key(), algorithms=["RS256"], audience="https://acme.my.salesforce.com")
    assert (claims["iss"], claims["sub"]) == ("key", "ops@acme.example")
    assert 0 < claims["exp"] - time.time() <= 180


@pytest.mark.parametrize("content", [None, b"", b"not a key", b"-----BEGIN PRIVATE KEY-----\nxx\n-----END PRIVATE KEY-----"])
def test_a_key_file_that_cannot_be_used_is_named_and_not_shown(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "acme.pem").write_bytes(content)
    login = Login("acme", config(flow="jwt", username="u", key_file="acme.pem", client_secret=None), tmp_path)
    with pytest.raises(SettingsError, match=r"acme\.pem") as refused:
        login._form()
    assert "BEGIN" not in str(refused.value)


def test_no_secret_is_in_a_repr() -> None:
    shown = f"{Login('acme', config())!r} {Token('00D!verysecret', 'https://x', '00D')!r} {config()!r}"
    assert SECRET not in shown
    assert "verysecret" not in shown


@pytest.mark.parametrize(
    ("status", "content", "kind"),
    [
        (403, [{"errorCode": "REQUEST_LIMIT_EXCEEDED", "message": "TotalRequests Limit exceeded."}], LimitReachedError),
        (403, [{"errorCode": "API_DISABLED_FOR_ORG", "message": ""}], PausedError),
        (403, [{"errorCode": "INSUFFICIENT_ACCESS_OR_READONLY"}], PausedError),
        (401, [{"errorCode": "INVALID_SESSION_ID", "message": "This session is not valid for use with the REST API"}], PausedError),
        (410, [{"errorCode": "UNSUPPORTED_API_VERSION"}], PausedError),
        (400, [{"errorCode": "INVALID_FIELD", "message": "No such column 'Shoe__c' on entity 'Contact'"}], PermanentError),
        (400, [{"errorCode": "INVALID_TYPE", "message": "sObject type 'X' is not supported"}], PermanentError),
        (400, [{"errorCode": "MALFORMED_QUERY", "message": "unexpected token"}], PermanentError),
        (400, [{"errorCode": "INVALID_QUERY_LOCATOR"}], TemporaryError),
        (400, [{"errorCode": "UNABLE_TO_LOCK_ROW"}], TemporaryError),
        (500, [{"errorCode": "UNABLE_TO_LOCK_ROW"}], TemporaryError),
        (503, [{"errorCode": "SERVER_UNAVAILABLE"}], TemporaryError),
        (500, [{"errorCode": "NEVER_HEARD_OF"}], TemporaryError),
        (400, [{"errorCode": "NEVER_HEARD_OF"}], PermanentError),
        (503, "<html>Maintenance</html>", TemporaryError),
        (400, "<?xml", TemporaryError),
        (302, "", TemporaryError),
        (400, [], TemporaryError),
        (400, [5], TemporaryError),
        (400, {"error": "invalid_grant"}, PermanentError),
        (404, None, TemporaryError),
    ],
)
def test_a_refused_call_is_classed_by_its_code(status: int, content: Any, kind: type[Exception]) -> None:
    assert type(classify(status, content)) is kind


def test_a_missing_field_is_named_and_a_lock_concerns_one_record() -> None:
    missing = classify(400, [{"errorCode": "INVALID_FIELD", "message": "No such column 'Shoe__c' on entity 'Contact'"}])
    locked = classify(400, [{"errorCode": "UNABLE_TO_LOCK_ROW", "message": "unable"}])
    assert isinstance(missing, PermanentError)
    assert missing.field == "Shoe__c"
    assert isinstance(locked, TemporaryError)
    assert locked.whole is False


REPLAY = (
    "400::The replayId {1553783} you provided was invalid.  "
    "Please provide a valid ID, -2 to replay all events, or -1 to replay only new events."
)


@pytest.mark.parametrize(
    ("error", "failure", "cause"),
    [
        ("403::Unknown client", "", "unknown_client"),
        ("402::Unknown client", "", "unknown_client"),
        ("400::Client X has established a session, but no BAYEUX_BROWSER cookie present", "", "unknown_client"),
        ("401::Authentication invalid", "", "unauthorized"),
        ("403::Handshake denied", "401::Authentication invalid", "unauthorized"),
        ("401::Authentication invalid", "503::Server is too busy.  Please try your request again later.", "limit"),
        ("403::Organization total events daily limit exceeded", "", "allocation"),
        ("403::Handshake denied", "", "limit"),
        ("500::boom", "", "server"),
        ("", "", "server"),
    ],
)
def test_an_error_of_the_stream_says_why_the_session_is_over(error: str, failure: str, cause: str) -> None:
    found = verdict(error, failure, 5)
    assert isinstance(found, SessionLostError)
    assert found.cause == cause


@pytest.mark.parametrize(
    "error",
    [
        "400::The channel you requested to subscribe to doesn't exist {/data/X}",
        "403::User not allowed to subscribe CDC without View All Data permissions",
        "403::Subscriber does not have access to the entity in this topic",
        "403::User not enabled for streaming",
        "403::Restricted channel",
    ],
)
def test_what_an_administrator_must_grant_pauses(error: str) -> None:
    assert isinstance(verdict(error, "", 5), PausedError)


def test_a_refused_position_is_told_from_a_refused_everything() -> None:
    assert isinstance(verdict(REPLAY, "", 1553783), PositionRefusedError)
    assert isinstance(verdict(REPLAY, "", -2), SessionLostError)


def test_a_position_survives_its_topic() -> None:
    at = Position(3, 2**60 + 1, 1777887011, "00D", "https://x", 5, "retained", refused=True)
    back = Position.parse("k", at.value())
    assert Position(**{n: getattr(back, n) for n in Position.__dataclass_fields__ if n != "at"}) == at
    assert orjson.loads(at.value())["from"] == "retained"


@pytest.mark.parametrize(
    "raw", [b"", b"{}", b"[]", b"5", b'{"epoch": "x", "from": "new", "started": 1}', b'{"epoch":1,"from":"new","started":1,"position":"7"}']
)
def test_a_damaged_position_stops_for_a_person(raw: bytes) -> None:
    with pytest.raises(FatalError, match="damaged"):
        Position.parse("acme|/data/ChangeEvents", raw)


def test_the_channel_of_an_object_is_its_own_or_one_that_names_it_before_one_of_several() -> None:
    own = ["/data/ChangeEvents", "/data/ContactChangeEvent", "/data/Foo__ChangeEvent"]
    named = {"/data/Sales__chn": ["Lead"], "/data/Rest__chn": []}
    auth = {"flow": "client_credentials", "client_id": "x"}
    found = Salesforce.model_validate({"type": "salesforce", "auth": auth, "channels": own})
    assert [found.channel_of(s) for s in ("Contact", "Foo__c", "Lead", "Paid__e")] == [own[1], own[2], own[0], "/event/Paid__e"]
    found = Salesforce.model_validate({"type": "salesforce", "auth": auth, "channels": named})
    assert [found.channel_of(s) for s in ("Lead", "Contact")] == ["/data/Sales__chn", "/data/Rest__chn"]
    assert [channel_sobject(c) for c in (*own, "/data/Sales__chn", "/event/Paid__e")] == [None, "Contact", "Foo__c", None, None]


@pytest.mark.parametrize(
    "raw", ["", "x", "003' OR 'a'='a", "003Qx00000Ke4Rté", "003Qx00000Ke4RtIAJx", "003Qx00000Ke4RtIAJ\n", "003Qx00000Ke4Rt--\n"]
)
def test_only_an_id_gets_into_soql(raw: str) -> None:
    with pytest.raises(PermanentError):
        check_id(raw)
    assert ID.fullmatch("003Qx00000Ke4RtIAJ")


@pytest.mark.parametrize("raw", ["", "Name FROM Contact", "a;b", "1a", "a.", ".a", "é", "a\n", "x" * 200])
def test_only_a_name_gets_into_soql(raw: str) -> None:
    with pytest.raises(PermanentError):
        check_name(raw)


def test_many_columns_are_read_in_groups_that_fit_a_uri_and_joined_with_the_older_stamp() -> None:
    fields = ["Id", "IsDeleted", "SystemModstamp", *(f"Some_Long_Custom_Field_Name_{n}__c" for n in range(600))]
    groups = split_fields(fields)
    assert len(groups) > 1
    assert {f for g in groups for f in g} == set(fields)
    assert all(g.count("Id") == 1 and "SystemModstamp" in g and sum(len(f) + 3 for f in g) < 9_000 for g in groups)
    rows = {"1": {"Id": "1", "A": 1, "SystemModstamp": "2026-05-04T09:30:12.000+0000", "Owner": {"Name": "x"}}}
    join(rows, [{"Id": "1", "B": 2, "SystemModstamp": "2026-05-04T09:30:11.000+0000", "Owner": {"Email": "y"}}])
    assert rows["1"] == {"Id": "1", "A": 1, "B": 2, "SystemModstamp": "2026-05-04T09:30:11.000+0000", "Owner": {"Name": "x", "Email": "y"}}


@pytest.mark.parametrize("date", [None, "", "x", "Mon, 99 Foo 2026", "0" * 5000])
def test_a_broken_date_is_no_clock(date: str | None) -> None:
    assert (second_of(date), skew_of(date)) == (None, 0.0)


def test_waits_grow_and_start_anew() -> None:
    backoff, error = Backoff(base=0.2, cap=30, pause=60), TemporaryError("x")
    waits = [backoff.after(error) for _ in range(40)]
    assert all(0.1 <= w <= 30 for w in waits)
    assert waits[0] <= 0.2
    backoff.reset()
    assert backoff.after(error) <= 0.2
    assert (backoff.after(PausedError("x")), backoff.after(TemporaryError("x", retry_after=7))) == (60, 7)
