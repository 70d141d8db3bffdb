"""Transforms as a user of maps writes them, for tests."""

from typing import Any

SHOUT = "!"


def shout(value: Any, end: str = SHOUT) -> Any:
    """Upper-case, with a sign."""
    return f"{value.upper()}{end}"


def as_set(value: Any) -> Any:
    """What JSON cannot hold."""
    return {value}
