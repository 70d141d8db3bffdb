"""Salesforce record ids: 15 characters and the checksum that makes them 18. Only text, no state."""

from itertools import pairwise

DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"  # in ASCII order, so later ids sort higher
_CHECK = "ABCDEFGHIJKLMNOPQRSTUVWXYZ012345"
NULL_ID = "000000000000000AAA"


def extend(id15: str) -> str:
    """The 18-character form: per group of five, bit i is set where character i is upper case A-Z."""
    groups = pairwise((0, 5, 10, 15))
    return id15 + "".join(_CHECK[sum("A" <= c <= "Z" and 1 << i for i, c in enumerate(id15[a:b]))] for a, b in groups)


def make(prefix: str, number: int, pod: str = "Qx0") -> str:
    """An 18-character id; `number` goes into the last nine of the fifteen, base 62."""
    tail = ""
    for _ in range(9):
        number, digit = divmod(number, 62)
        tail = DIGITS[digit] + tail
    return extend(prefix + pod + tail)


def normalize(text: object) -> str | None:
    """The 18-character id that `text` stands for, or None where it is no id (length, alphabet or checksum)."""
    if not isinstance(text, str) or not text.isascii() or not text.isalnum():
        return None
    if len(text) == 15:
        return extend(text)
    return text if len(text) == 18 and extend(text[:15]) == text else None
