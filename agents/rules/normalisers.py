"""Transforms that a library knows better than we could: mail addresses, phone numbers, names of persons, registered domains. Pure, offline.

Values repeat (a company's domain, a switchboard's number), so answers are kept; texts too long to be any of these are refused first.
"""

from functools import lru_cache
from typing import Any

import phonenumbers
import tldextract
from email_validator import EmailNotValidError, validate_email
from nameparser import HumanName

from agents.rules.transforms import domain, kind, mail, text
from models.record_id import id18

KEPT = 16_384
LONGEST = 1000
_SUFFIXES = tldextract.TLDExtract(cache_dir=None, suffix_list_urls=())
"""The list that comes with the package: no look-up, and the same answer everywhere."""


def _plain(value: Any, what: str) -> str | None:
    if not isinstance(value, str) or len(value) > LONGEST:
        raise ValueError(f"{kind(value)} is not {what}")
    found = text(value)
    return found if isinstance(found, str) else None


def valid_mail(value: Any) -> Any:
    """As `mail`, and of a form that mail can be sent to. Asks no DNS."""
    plain = _plain(value, "a mail address")
    return None if plain is None else _valid_mail(plain)


@lru_cache(KEPT)
def _valid_mail(plain: str) -> str:
    try:
        found = validate_email(plain, check_deliverability=False, test_environment=True).normalized
    except (EmailNotValidError, ValueError):
        raise ValueError("text is not a mail address") from None
    return str(mail(found))


def phone(value: Any, region: str | None = None) -> Any:
    """E.164 (+4930123456); without a country's code it is a number of `region`. An extension is left out."""
    plain = _plain(value, "a phone number")
    return None if plain is None else _phone(plain, region)


@lru_cache(KEPT)
def _phone(plain: str, region: str | None) -> str:
    try:
        found = phonenumbers.parse(plain, region)
    except phonenumbers.NumberParseException:
        raise ValueError("text is not a phone number") from None
    if not phonenumbers.is_possible_number(found):
        raise ValueError("text is not a phone number")
    return str(phonenumbers.format_number(found, phonenumbers.PhoneNumberFormat.E164))


def registered_domain(value: Any) -> Any:
    """What was registered, of a URL or host: shop.acme.co.uk gives acme.co.uk. An address or a bare name stays as it is."""
    host = domain(value)
    return None if host is None else _registered(host)


@lru_cache(KEPT)
def _registered(host: str) -> str:
    return _SUFFIXES(host).top_domain_under_public_suffix or host


def first_name(value: Any) -> Any:
    """Given and middle names of a whole name; null when it is a single word."""
    plain = _plain(value, "a name")
    return None if plain is None else _split(plain)[0]


def last_name(value: Any) -> Any:
    """Family name of a whole name, with its particles (van der Berg) and without a suffix; a single word is one."""
    plain = _plain(value, "a name")
    return None if plain is None else _split(plain)[1]


@lru_cache(KEPT)
def _split(plain: str) -> tuple[str | None, str]:
    words = plain.split()
    if len(words) < 2:
        return None, plain
    if all(map(_is_east_asian, words)):  # the family comes first
        return " ".join(words[1:]), words[0]
    name = HumanName(plain)
    given = f"{name.first} {name.middle}".strip()
    if not name.last or not given:
        return None, name.last or given or " ".join(words)
    return given, str(name.last)


def _is_east_asian(word: str) -> bool:
    return all("\u3040" <= sign <= "\u30ff" or "\u3400" <= sign <= "\u9fff" or "\uac00" <= sign <= "\ud7a3" for sign in word)


def user(value: Any) -> Any:
    """What names a user: an id becomes one of 18 characters, a user name lower-case; a federation id stays as it is, trimmed."""
    plain = _plain(value, "a user")
    if plain is None:
        return None
    if plain.startswith("005") and plain.isascii() and plain.isalnum() and len(plain) in (15, 18):
        return id18(plain[:15])
    return plain.lower() if "@" in plain else plain
