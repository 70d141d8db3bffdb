"""A dead letter: an event that cannot pass, with its original bytes and what a person can do about it. Kept for ever."""

import base64
import hashlib
import re
from typing import Any

from pydantic import BaseModel, ConfigDict

PARTICULARS = re.compile(r"'[^']*'|\"[^\"]*\"|\{[^{}]*\}|\b[a-zA-Z0-9]{3}[A-Za-z0-9]{12,15}\b(?<=[0-9A-Z])|[0-9]+")
"""What differs between equal causes of different records: quoted values, Salesforce ids, numbers."""


class DeadLetter(BaseModel):
    """Value of a record in `dead-letters` (JSON); the Kafka key is `id`.

    id            "<topic>/<partition>/<offset>/<route or ->" of the original: the same failure again is recognised
    stage         subscribe | receive | process | fetch | write | replay | engine (a log that lost records: engine/loss.py)
    cause         fingerprint that groups equal causes: stage, route, error class, and the reason without ids, numbers, quoted values
    reason        what happened, to what, and what to do
    retryable     True when nothing about the record is wrong (attempts used up)
    topic, partition, offset, key, value, headers   the original record; bytes as base64
    redrive_to    in-topic the redrive goes to
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    stage: str
    route: str | None = None
    cause: str
    reason: str
    field: str | None = None
    retryable: bool = False
    attempts: int = 1
    at: int
    topic: str
    partition: int
    offset: int
    key: str | None = None
    value: str | None = None
    headers: list[tuple[str, str]] = []
    redrive_to: str
    revision: int | None = None
    source: str | None = None

    @property
    def original_value(self) -> bytes | None:
        """The original bytes."""
        return None if self.value is None else base64.b64decode(self.value)

    @property
    def original_key(self) -> bytes | None:
        """The original key."""
        return None if self.key is None else base64.b64decode(self.key)

    @property
    def original_headers(self) -> list[tuple[str, bytes]]:
        """The original headers."""
        return [(name, base64.b64decode(value)) for name, value in self.headers]


def cause_of(stage: str, route: str | None, error: str, reason: str) -> str:
    """Fingerprint of a cause: equal for equal causes of different records. 12 hex characters."""
    plain = PARTICULARS.sub("#", reason)
    return hashlib.sha256(f"{stage}|{route}|{error}|{plain}".encode()).hexdigest()[:12]


def dead_letter(
    *,
    stage: str,
    reason: str,
    error: str,
    at: int,
    topic: str,
    partition: int,
    offset: int,
    key: bytes | None,
    value: bytes | None,
    headers: list[tuple[str, bytes]],
    redrive_to: str,
    route: str | None = None,
    **more: Any,
) -> DeadLetter:
    """Build one from the original record; `at` is epoch ms, `error` the class name of the error."""

    def b64(raw: bytes | None) -> str | None:
        return None if raw is None else base64.b64encode(raw).decode()

    return DeadLetter(
        id=f"{topic}/{partition}/{offset}/{route or '-'}",
        stage=stage,
        route=route,
        cause=cause_of(stage, route, error, reason),
        reason=reason,
        at=at,
        topic=topic,
        partition=partition,
        offset=offset,
        key=b64(key),
        value=b64(value),
        headers=[(name, base64.b64encode(raw).decode()) for name, raw in headers],
        redrive_to=redrive_to,
        **more,
    )
