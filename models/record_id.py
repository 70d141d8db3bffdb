"""Ids of Salesforce's records, in the one form in which they are keys. Pure."""

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ012345"


def id18(raw: str) -> str:
    """The 18-character form of a record id of 15 or 18 characters."""
    if len(raw) == 18:
        return raw
    groups = (raw[start : start + 5] for start in (0, 5, 10))
    return raw + "".join(ALPHABET[sum(1 << i for i, c in enumerate(g) if "A" <= c <= "Z")] for g in groups)
