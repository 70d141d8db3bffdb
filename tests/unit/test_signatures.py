"""Only what the sender signed is accepted, and each refusal has its own name. Vectors and their sources: tests/data/webhooks.jsonl."""

import base64
import hashlib
import hmac
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from streams.webhooks.signatures import Refusal, RefusedError, github_key, standard_key, verify_github, verify_standard

LINES = [json.loads(line) for line in (Path(__file__).parents[1] / "data" / "webhooks.jsonl").read_text().splitlines()]
VECTORS = {row["kind"]: row["message"] for row in LINES if row["kind"].startswith("signature.")}
SIGNED_AT = 1614265330
KEY = standard_key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
OTHER = standard_key("whsec_" + base64.b64encode(b"another key of 24 bytes!").decode())
BODY = b'{"test": 2432232314}'


def signed(body: bytes = BODY, key: bytes = KEY, at: object = SIGNED_AT, delivery: str = "msg_1") -> CIMultiDict[str]:
    """Headers of a correct delivery."""
    digest = hmac.digest(key, f"{delivery}.{at}.".encode() + body, hashlib.sha256)
    return CIMultiDict(
        {
            "Webhook-Id": delivery,
            "Webhook-Timestamp": str(at),
            "Webhook-Signature": f"v1,{base64.b64encode(digest).decode()}",
        }
    )


def check(headers: CIMultiDict[str], body: bytes = BODY, keys: tuple[bytes, ...] = (KEY,), now: float = SIGNED_AT) -> str:
    """The delivery id, or the name of the refusal."""
    try:
        return verify_standard(keys, headers, body, now=now, tolerance=300)
    except RefusedError as error:
        return error.refusal.name


@pytest.mark.parametrize("kind", [kind for kind in VECTORS if "Hub" not in kind])
def test_agrees_with_the_published_vectors(kind: str) -> None:
    vector = VECTORS[kind]
    keys = [standard_key(vector["secret"])]
    answer = check(CIMultiDict(vector["headers"]), vector["body"].encode(), tuple(keys))
    assert (answer == "msg_p5jXN8AQM9LWM0D4loKWxJek") is vector["valid"], answer


def test_agrees_with_githubs_vector() -> None:
    vector = VECTORS["signature.X-Hub-Signature-256"]
    delivery = verify_github([github_key(vector["secret"])], CIMultiDict(vector["headers"]), vector["body"].encode())
    assert delivery == hashlib.sha256(b"Hello, World!").hexdigest()


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        ({"Webhook-Id": None}, "ID_MISSING"),
        ({"Webhook-Id": ""}, "ID_MISSING"),
        ({"Webhook-Id": "a b"}, "ID_MALFORMED"),
        ({"Webhook-Id": "x" * 257}, "ID_MALFORMED"),
        ({"Webhook-Id": "msg_\udc80"}, "ID_MALFORMED"),
        ({"Webhook-Id": "msg_2"}, "SIGNATURE_WRONG"),
        ({"Webhook-Timestamp": None}, "TIMESTAMP_MISSING"),
        ({"Webhook-Timestamp": "1614265330.0"}, "TIMESTAMP_MALFORMED"),
        ({"Webhook-Timestamp": "1_614_265_330"}, "TIMESTAMP_MALFORMED"),
        ({"Webhook-Timestamp": "١٦١٤٢٦٥٣٣٠"}, "TIMESTAMP_MALFORMED"),
        ({"Webhook-Timestamp": "1614265330\n"}, "TIMESTAMP_MALFORMED"),
        ({"Webhook-Timestamp": "9" * 5000}, "TIMESTAMP_MALFORMED"),
        ({"Webhook-Timestamp": "-1"}, "TIMESTAMP_MALFORMED"),
        ({"Webhook-Timestamp": "1614265331"}, "SIGNATURE_WRONG"),
        ({"Webhook-Timestamp": "1614265029"}, "TOO_OLD"),
        ({"Webhook-Timestamp": "1614265631"}, "TOO_NEW"),
        ({"Webhook-Signature": None}, "SIGNATURE_MISSING"),
        ({"Webhook-Signature": ""}, "SIGNATURE_MISSING"),
        ({"Webhook-Signature": " "}, "SIGNATURE_UNKNOWN"),
        ({"Webhook-Signature": "v1"}, "SIGNATURE_UNKNOWN"),
        ({"Webhook-Signature": "v1a,AAAA"}, "SIGNATURE_UNKNOWN"),
        ({"Webhook-Signature": "v1,"}, "SIGNATURE_WRONG"),
        ({"Webhook-Signature": "v1,\udcff\udcfe"}, "SIGNATURE_WRONG"),
    ],
)
def test_each_fault_has_its_own_refusal(change: dict[str, str | None], refusal: str) -> None:
    headers = signed()
    for name, value in change.items():
        del headers[name]
        if value is not None:
            headers[name] = value
    assert check(headers) == refusal


@pytest.mark.parametrize("off", [-300, 0, 300])
def test_a_clock_within_the_tolerance_is_accepted(off: int) -> None:
    assert check(signed(), now=SIGNED_AT + off) == "msg_1"


def test_either_secret_is_accepted_while_they_are_rotated_and_no_other() -> None:
    assert check(signed(key=OTHER), keys=(KEY, OTHER)) == "msg_1"
    assert check(signed(key=KEY), keys=(KEY, OTHER)) == "msg_1"
    assert check(signed(key=OTHER), keys=(KEY,)) == "SIGNATURE_WRONG"


def test_any_of_several_signatures_is_enough() -> None:
    headers = signed()
    headers["Webhook-Signature"] = f"v1,d3Jvbmc= v1a,AAAA {headers['Webhook-Signature']} v2,x"
    assert check(headers) == "msg_1"


def test_a_body_changed_by_one_bit_is_refused() -> None:
    assert check(signed(), bytes([BODY[0] ^ 1]) + BODY[1:]) == "SIGNATURE_WRONG"


@pytest.mark.parametrize(
    ("given", "refusal"),
    [
        (None, "SIGNATURE_MISSING"),
        ("sha1=" + "0" * 40, "SIGNATURE_UNKNOWN"),
        ("sha256=" + "0" * 63, "SIGNATURE_UNKNOWN"),
        ("sha256=" + "٠" * 64, "SIGNATURE_UNKNOWN"),
        ("0" * 64, "SIGNATURE_UNKNOWN"),
        ("sha256=" + "0" * 64, "SIGNATURE_WRONG"),
    ],
)
def test_githubs_faults_have_their_refusals(given: str | None, refusal: str) -> None:
    headers = CIMultiDict({} if given is None else {"X-Hub-Signature-256": given})
    with pytest.raises(RefusedError) as caught:
        verify_github([b"key"], headers, b"body")
    assert caught.value.refusal is Refusal[refusal]


def test_githubs_hexadecimal_may_be_in_capitals() -> None:
    digest = hmac.new(b"key", b"body", hashlib.sha256).hexdigest().upper()
    assert verify_github([b"key"], CIMultiDict({"X-Hub-Signature-256": f"sha256={digest}"}), b"body")


def test_githubs_delivery_id_is_kept_and_a_bad_one_refused() -> None:
    headers = CIMultiDict({"X-Hub-Signature-256": f"sha256={hmac.new(b'key', b'body', hashlib.sha256).hexdigest()}"})
    assert verify_github([b"old", b"key"], CIMultiDict(headers, **{"X-GitHub-Delivery": "72d3162e"}), b"body") == "72d3162e"
    with pytest.raises(RefusedError, match="printable"):
        verify_github([b"key"], CIMultiDict(headers, **{"X-GitHub-Delivery": "\x01"}), b"body")


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_!!!", "nöt base64", "====", "whsec_a"])
def test_what_cannot_be_a_secret_is_refused_without_repeating_it(secret: str) -> None:
    with pytest.raises(ValueError, match=r"is empty|is not base64") as caught:
        standard_key(secret)
    assert len(secret) < 3 or secret not in str(caught.value)


def test_prefix_and_padding_of_a_secret_may_be_missing() -> None:
    assert standard_key("whsec_" + base64.b64encode(b"0123456789").decode()) == standard_key(base64.b64encode(b"0123456789").decode()[:-2])


ANY_TEXT = st.text(st.characters(codec="utf-8"), max_size=60)


@given(
    st.dictionaries(st.sampled_from(["webhook-id", "webhook-timestamp", "webhook-signature", "svix-id"]), ANY_TEXT), st.binary(max_size=60)
)
def test_no_made_up_delivery_is_accepted_or_raises_anything_else(headers: dict[str, str], body: bytes) -> None:
    with pytest.raises(RefusedError):
        verify_standard([KEY], CIMultiDict(headers), body, now=SIGNED_AT, tolerance=300)
    with pytest.raises(RefusedError):
        verify_github([KEY], CIMultiDict({"x-hub-signature-256": headers.get("webhook-id", "")}), body)


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_a_signature_is_good_for_its_own_body_only(body: bytes, other: bytes) -> None:
    assert check(signed(body), body) == "msg_1"
    assert (check(signed(body), other) == "msg_1") is (body == other)
