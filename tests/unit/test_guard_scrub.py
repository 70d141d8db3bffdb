"""What a remote system said holds no secret and no person when it is kept."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.scrub import scrub

KEY = "abcdef0123456789abcdef0123456789"


@pytest.mark.parametrize(
    "text",
    [
        f"Api-Key: {KEY}",
        f'{{"Api-Key":"{KEY}","x":1}}',
        f"Headers: Map(Api-Key -> ArraySeq({KEY}), Host -> x)",
        f"api_key={KEY} and more",
        f"Authorization: Bearer {KEY}",
        f"https://api.example.com/path?access_token={KEY}&b=1",
        f"postgresql://crm:{KEY}@db.example.com:5432/crm is away",
        f"password='{KEY}'",
        f"sid={KEY}",
        f"-----BEGIN PRIVATE KEY-----\n{KEY}\n-----END PRIVATE KEY-----",
        f"unexpected {KEY}",
    ],
)
def test_keys_and_tokens_go(text: str) -> None:
    assert KEY not in scrub(text)


@pytest.mark.parametrize(
    "text", ["no user niels@tray.example", "a%40b.example unknown", "'Ann.O+x'@tray.example", "from 10.1.2.3", "from 2001:db8::1"]
)
def test_mails_and_addresses_go(text: str) -> None:
    assert not any(part in scrub(text) for part in ("tray", "b.example", "10.1.2.3", "db8"))


@pytest.mark.parametrize(
    "text",
    [
        "record 0035g00000XyZabAAB at 12:30:45 in t.in.acme.Contact/3/1207",
        'column "score" cannot hold this value: invalid input syntax for type numeric: "abc"',
        "token expired",
        "",
    ],
)
def test_what_helps_a_person_stays(text: str) -> None:
    assert scrub(text) == text


@given(st.text(max_size=3000))
def test_any_text_comes_back_short_and_without_control_characters(text: str) -> None:
    found = scrub(text, 200)
    assert len(found) <= 200
    assert not any(ord(sign) < 32 and sign not in "\t\n" for sign in found)
