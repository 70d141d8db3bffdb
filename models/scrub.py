"""What a remote system says is cleaned here before it is kept: in errors, logs, dead letters.

Recorded error texts of real systems repeat request bodies, headers with the key in them, the caller's address and mails of persons. Pure;
it may hide too much (the original bytes stand in the dead letter), never too little.
"""

import re

NAMES = (
    r"api[-_ ]?key|access[-_ ]?token|refresh[-_ ]?token|token|secret|passwo?r?d|passwd|pwd|authorization|session[-_ ]?id|sid|assertion"
    r"|signature|dsn"
)
"""What introduces a secret."""

RULES = (
    (re.compile(r"-----BEGIN [A-Z ]+-----.*?(-----END [A-Z ]+-----|\Z)", re.DOTALL), "<key>"),
    (re.compile(r"\b([a-z][a-z0-9+.-]*://)[^\s'\"<>]*@", re.IGNORECASE), r"\1<login>@"),
    (re.compile(r"\b(https?://[^\s?'\"<>]+)\?[^\s'\"<>]+", re.IGNORECASE), r"\1?<query>"),
    (re.compile(r"\b(bearer|basic|oauth2?)\s+(?!token\b)[^\s,;'\"]{6,}", re.IGNORECASE), r"\1 <secret>"),
    (
        re.compile(
            rf"([\"']?\b[\w-]*(?:{NAMES})\b[\"']?\s*(?:->|[:=(])\s*\[?)(?:\"[^\"]*\"?|'[^']*'?|(?:<secret>|[^\s,;)\]}}\"'])+)",
            re.IGNORECASE,
        ),
        r"\1<secret>",
    ),
    (re.compile(r"[\w.!#$%&'*+/=?^`{|}~-]+(?:@|%40)[\w-]+(?:\.[\w-]+)*", re.UNICODE), "<mail>"),
    (re.compile(r"\b(?:\d{1,3}\.){3}\d{1,3}\b"), "<address>"),
    (
        re.compile(
            r"(?<![\w:])(?:(?:[0-9a-f]{1,4}:){5,7}[0-9a-f]{1,4}|(?:[0-9a-f]{1,4}:){1,6}(?::[0-9a-f]{1,4}){1,6})(?![\w:])", re.IGNORECASE
        ),
        "<address>",
    ),
    (re.compile(r"(?<![\w.!-])(?=[\w.!~+=-]*[0-9])(?=[\w.!~+=-]*[A-Za-z])[\w.!~+=-]{24,}"), "<secret>"),
)
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]+")


def scrub(text: str, limit: int = 500) -> str:
    """The text without keys, tokens, mails and addresses, at most `limit` characters."""
    text = CONTROL.sub(" ", text[: limit * 8])
    for pattern, put in RULES:
        text = pattern.sub(put, text)
    text = text.strip()
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
