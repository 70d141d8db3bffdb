"""Names of fields: compound fields of events as REST's flat names, relationship paths and their keys, text differences. Pure."""

import hashlib
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

NAME_PARTS = ("Salutation", "FirstName", "MiddleName", "LastName", "Suffix")
FULL_NAME = ("FirstName", "MiddleName", "LastName", "Suffix")
"""What Salesforce joins to `Name`; the salutation is no part of it."""
PERSONS = frozenset({"Contact", "Lead", "User"})
"""Objects whose Name is compound. (A person Account's is too: the value's type tells.)"""
ADDRESS_PARTS = (
    "Street",
    "City",
    "State",
    "PostalCode",
    "Country",
    "StateCode",
    "CountryCode",
    "Latitude",
    "Longitude",
    "GeocodeAccuracy",
)

_DATETIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d{3})?(?:Z|\+00:?00)")
_LINE_END = re.compile(r"\r\n|\n|\r")
_HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")


@lru_cache(maxsize=4096)
def parts(sobject: str, name: str) -> tuple[tuple[str, str], ...]:
    """(component, flat REST name) of a compound field; () when `name` is not known to be one.

    BillingAddress → BillingStreet…; a Lead's Address → Street…; Name of persons → FirstName…; Loc__c → Loc__Latitude__s….
    """
    if name == "Name":
        return tuple((part, part) for part in NAME_PARTS) if sobject in PERSONS else ()
    if name.endswith("Address"):
        stem = name.removesuffix("Address")
        return tuple((part, stem + part) for part in ADDRESS_PARTS)
    if name.endswith("__c"):
        stem = name.removesuffix("__c")
        return tuple((part, f"{stem}__{part}__s") for part in ADDRESS_PARTS)
    return ()


def full_name(known: Mapping[str, Any]) -> str | None:
    """`Name` of a person from its parts; None when all are empty."""
    return " ".join(str(known[part]) for part in FULL_NAME if known.get(part)) or None


def relationship_key(path: str) -> str | None:
    """Field that holds the id a relationship path goes through: Owner.Email → OwnerId, Boss__r.Name → Boss__c; None for a flat name."""
    root, dot, _ = path.partition(".")
    if not dot:
        return None
    return root.removesuffix("__r") + "__c" if root.endswith("__r") else root + "Id"


def tidy(value: Any) -> Any:
    """Date-times in one form: events write 2020-08-06T06:22:19.000Z or without milliseconds, REST +0000. Everything else as it is."""
    if type(value) is str and 20 <= len(value) <= 29 and value[10] == "T" and (found := _DATETIME.fullmatch(value)):
        return f"{found[1]}{found[2] or '.000'}Z"
    return value


def apply_diff(held: str, diff: str) -> str | None:
    """The new text of a large field, or None when the difference does not fit what is held (then the record is read again).

    The hash after `+++ ` is that of the whole new text; its line ends are not told, so both are tried.
    """
    lines = [line.removesuffix("\r") for line in diff.split("\n")]
    start = next((at for at, line in enumerate(lines) if line.startswith("@@")), len(lines))
    wanted = next((line[4:].strip().lower() for line in lines[:start] if line.startswith("+++ ")), "")
    old = _LINE_END.split(held)
    new: list[str] = []
    at = 0
    for line in lines[start:]:
        if found := _HUNK.match(line):
            first = int(found[1]) - (0 if found[2] == "0" else 1)
            if not at <= first <= len(old):
                return None
            new += old[at:first]
            at = first
        elif line.startswith("+"):
            new.append(line[1:])
        elif line.startswith(("-", " ")):
            if at >= len(old) or old[at] != line[1:]:
                return None
            if line[0] == " ":
                new.append(old[at])
            at += 1
    new += old[at:]
    for end in ("\r\n", "\n"):
        text = end.join(new)
        if hashlib.sha256(text.encode()).hexdigest() == wanted:
            return text
    return None
