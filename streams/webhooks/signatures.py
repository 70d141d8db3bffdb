"""Is this delivery from who it says it is? Pure: no clock, no I/O, and it never looks into the body.

Two styles: Standard Webhooks (headers webhook-* or svix-*) and GitHub's X-Hub-Signature-256. Every secret is tried, whichever signed,
and compared in constant time. A refusal has a name; neither name nor text says anything about a secret.
"""

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from enum import StrEnum

ID_CHARACTERS = 256


class Refusal(StrEnum):
    """Why a delivery is not accepted. A closed set: it goes into answers and logs."""

    ID_MISSING = "the delivery id is missing"
    ID_MALFORMED = f"the delivery id is not 1 to {ID_CHARACTERS} printable ASCII characters"
    TIMESTAMP_MISSING = "the timestamp is missing"
    TIMESTAMP_MALFORMED = "the timestamp is not a number of whole seconds"
    TOO_OLD = "the timestamp is too old: a repeat of an earlier delivery, or the sender's clock is behind"
    TOO_NEW = "the timestamp is in the future: the sender's clock is ahead"
    SIGNATURE_MISSING = "the signature is missing"
    SIGNATURE_UNKNOWN = "the signature has no form known here"
    SIGNATURE_WRONG = "the signature does not match: another secret, or the body was changed on its way"


class RefusedError(Exception):
    """This delivery is not accepted."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.value)
        self.refusal = refusal


def standard_key(secret: str) -> bytes:
    """Bytes of a Standard Webhooks secret: `whsec_` + base64; prefix and padding may be missing. Raises ValueError without its text."""
    text = secret.strip().removeprefix("whsec_").rstrip("=")
    try:
        key = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("is not base64, as Standard Webhooks asks (whsec_ and base64)") from None
    if not key:
        raise ValueError("is empty")
    return key


def github_key(secret: str) -> bytes:
    """Bytes of a GitHub-style secret: the text itself. Raises ValueError."""
    if not secret:
        raise ValueError("is empty")
    return secret.encode()


def verify_standard(keys: Sequence[bytes], headers: Mapping[str, str], body: bytes, *, now: float, tolerance: float) -> str:
    """The delivery id. `headers` ignores case; `now` in epoch seconds, `tolerance` in seconds either way. Raises RefusedError."""
    brand = "svix" if "webhook-id" not in headers and "svix-id" in headers else "webhook"
    delivery = checked_id(headers.get(f"{brand}-id"))
    timestamp, given = headers.get(f"{brand}-timestamp"), headers.get(f"{brand}-signature")
    if not timestamp:
        raise RefusedError(Refusal.TIMESTAMP_MISSING)
    if not re.fullmatch(r"[0-9]{1,12}", timestamp, re.ASCII):
        raise RefusedError(Refusal.TIMESTAMP_MALFORMED)
    if int(timestamp) < now - tolerance:
        raise RefusedError(Refusal.TOO_OLD)
    if int(timestamp) > now + tolerance:
        raise RefusedError(Refusal.TOO_NEW)
    if not given:
        raise RefusedError(Refusal.SIGNATURE_MISSING)
    signatures = [text for version, comma, text in (entry.partition(",") for entry in given.split()) if comma and version == "v1"]
    if not signatures:
        raise RefusedError(Refusal.SIGNATURE_UNKNOWN)
    signed = f"{delivery}.{timestamp}.".encode() + body
    _match([base64.b64encode(hmac.digest(key, signed, hashlib.sha256)) for key in keys], signatures)
    return delivery


def verify_github(keys: Sequence[bytes], headers: Mapping[str, str], body: bytes) -> str:
    """The delivery id: X-GitHub-Delivery, else a hash of the body (the signature covers neither id nor time). Raises RefusedError."""
    given = headers.get("x-hub-signature-256")
    if not given:
        raise RefusedError(Refusal.SIGNATURE_MISSING)
    if not re.fullmatch(r"sha256=[0-9A-Fa-f]{64}", given, re.ASCII):
        raise RefusedError(Refusal.SIGNATURE_UNKNOWN)
    _match([hmac.new(key, body, hashlib.sha256).hexdigest().encode() for key in keys], [given[7:].lower()])
    if (delivery := headers.get("x-github-delivery")) is None:
        return hashlib.sha256(body).hexdigest()
    return checked_id(delivery)


def checked_id(delivery: str | None) -> str:
    """The id when it can be a key and a header. Raises RefusedError."""
    if not delivery:
        raise RefusedError(Refusal.ID_MISSING)
    if not re.fullmatch(f"[!-~]{{1,{ID_CHARACTERS}}}", delivery):
        raise RefusedError(Refusal.ID_MALFORMED)
    return delivery


def _match(expected: Sequence[bytes], given: Sequence[str]) -> None:
    """Compare all with all, so that the time says nothing."""
    texts = [text.encode("utf-8", "surrogateescape") for text in given]
    found = [hmac.compare_digest(one, other) for one in expected for other in texts]
    if True not in found:
        raise RefusedError(Refusal.SIGNATURE_WRONG)
