"""What Iterable answers, however odd, becomes the right outcome; nothing it says leaks."""

from typing import Any, cast

import orjson
import pytest

from agents.outbound import Answer, Outbound
from agents.targets import make_target
from agents.targets.base import Effect, cleared
from agents.targets.iterable import Target, user
from models.errors import PausedError, PermanentError, TemporaryError
from models.flow import Target as Given
from models.write import Body, Outcome, WriteResult
from tests.support import effects


class Wire:
    """Answers instead of Iterable."""

    def __init__(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        self.answer = Answer(status, headers or {}, body if isinstance(body, bytes) else orjson.dumps(body))
        self.asked: list[tuple[str, str, Any]] = []

    async def request(self, method: str, path: str, body: bytes | None = None) -> Answer:
        self.asked.append((method, path, None if body is None else orjson.loads(body)))
        return self.answer


def target(wire: Wire) -> Target:
    made = make_target("m", Given.model_validate({"type": "iterable", "api_key": "made-up"}), "unit")
    found = cast("Target", made)
    found._http = cast("Outbound", wire)
    return found


def effect(key: str = "a@b.example", body: Body | None = None, **more: Any) -> Effect:
    return effects.effect("users", key, body, **more)


def write(key: str = "a@b.example") -> Effect:
    return effect(key, {"email": key, "dataFields": {}})


async def outcomes(wire: Wire, *given: Effect) -> list[WriteResult]:
    return await target(wire).write(given or (write(),))


OK = {"successCount": 1, "failCount": 0}


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b'{"successCount":1,"fail'),
        (200, b"<html>proxy</html>"),
        (200, b""),
        (200, b"[]"),
        (200, b'"OK"'),
        (200, {"msg": "", "code": "Success"}),
        (429, b"Too Many Requests"),
        (429, {"code": "RateLimitExceeded"}),
        (400, {"code": "RateLimitExceeded"}),
        (500, {"code": "GenericError"}),
        (503, b"<html>"),
        (408, b""),
    ],
)
async def test_what_says_nothing_certain_is_asked_again(status: int, body: Any) -> None:
    with pytest.raises(TemporaryError):
        await outcomes(Wire(status, body))


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (401, {"code": "Success", "msg": "Invalid API key"}),
        (401, b"no"),
        (403, {"code": "Forbidden"}),
        (400, {"code": "BadApiKey"}),
        (404, b"<html>Action not found</html>"),
        (302, b""),
    ],
)
async def test_a_wrong_key_or_address_pauses_whatever_the_body_says(status: int, body: Any) -> None:
    with pytest.raises(PausedError):
        await outcomes(Wire(status, body))


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "BadJsonBody"),
        (400, "RequestFieldsTypesMismatched"),
        (500, "RequestFieldsTypesMismatched"),
        (413, "BatchTooLarge"),
        (409, "X"),
    ],
)
async def test_a_refusal_that_one_user_may_have_caused_splits_the_batch(status: int, code: str) -> None:
    with pytest.raises(PermanentError):
        await outcomes(Wire(status, {"code": code, "params": None}), write("a@b.example"), write("c@d.example"))


async def test_any_other_refusal_is_not_repeated_for_each_user() -> None:
    wire = Wire(400, {"code": "UniqueFieldsLimitExceeded", "msg": "too many fields"})
    found = await outcomes(wire, write("a@b.example"), write("c@d.example"))
    assert [result.outcome for result in found] == [Outcome.DEAD] * 2
    assert len(wire.asked) == 1


@pytest.mark.parametrize(
    ("bucket", "outcome"),
    [
        ("invalidEmails", Outcome.DEAD),
        ("invalidDataEmails", Outcome.DEAD),
        ("notFoundEmails", Outcome.DEAD),
        ("forgottenEmails", Outcome.SUPPRESSED),
        ("noOpEmails", Outcome.UNCHANGED),
    ],
)
@pytest.mark.parametrize("nested", [True, False])
async def test_each_bucket_finds_its_user_whatever_its_writing(bucket: str, outcome: Outcome, nested: bool) -> None:
    failed = 0 if outcome is Outcome.UNCHANGED else 1
    told: Any = {bucket: [" A@B.Example "]}
    wire = Wire(200, {"successCount": 2 - failed, "failCount": failed, **({"failedUpdates": told} if nested else told)})
    found = await outcomes(wire, write("a@b.example"), write("c@d.example"))
    assert [result.outcome for result in found] == [outcome, Outcome.WRITTEN]


@pytest.mark.parametrize("told", [{"failCount": 1}, {"failCount": 0, "failedUpdates": {"conflictEmails": ["other@x.example"]}}])
async def test_a_failure_that_names_nobody_is_narrowed_down_to_one_user(told: dict[str, Any]) -> None:
    wire = Wire(200, {"successCount": 1, **told})
    with pytest.raises(PermanentError):
        await outcomes(wire, write("a@b.example"), write("c@d.example"))
    assert [result.outcome for result in await outcomes(wire)] == [Outcome.DEAD]


async def test_a_type_mismatch_names_its_field_and_not_the_value() -> None:
    wire = Wire(
        400, {"code": "RequestFieldsTypesMismatched", "msg": "m", "params": {"validationErrors": {"score": {"offendingValue": "S3CR"}}}}
    )
    with pytest.raises(PermanentError) as caught:
        await outcomes(wire)
    assert caught.value.field == "dataFields.score"
    assert "S3CR" not in str(caught.value)


async def test_what_iterable_repeats_of_us_is_scrubbed() -> None:
    key = "0123456789abcdef0123456789abcdef"
    wire = Wire(401, {"msg": f"Headers: Map(Api-Key -> {key}) of ann@b.example from 10.0.0.1", "code": "Success"})
    with pytest.raises(PausedError) as caught:
        await outcomes(wire)
    assert not any(word in str(caught.value) for word in (key, "ann@", "10.0.0.1"))


@pytest.mark.parametrize(
    ("raw", "seconds"),
    [("7", 7.0), ("-3", None), ("soon", None), ("", None), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0), ("9" * 400, 999999999.0)],
)
def test_retry_after_is_seconds_or_a_date(raw: str, seconds: float | None) -> None:
    assert Answer(429, {"Retry-After": raw}, b"").retry_after == seconds


@pytest.mark.parametrize(
    ("status", "body", "outcome", "calls"),
    [
        (200, {"code": "Success"}, Outcome.WRITTEN, 1),
        (400, {"code": "InvalidEmailAddressError", "msg": "Invalid currentEmail sayan"}, Outcome.DELETED, 1),
        (400, {"code": "UnknownEmailError", "msg": "No user with x exists"}, Outcome.DELETED, 1),
        (404, {"code": "NotFound", "msg": "x"}, Outcome.DELETED, 1),
        (400, {"code": "InvalidEmailAddressError", "msg": "Invalid newEmail x"}, Outcome.DEAD, 1),
    ],
)
async def test_a_rename_ends_with_the_old_address_gone(status: int, body: Any, outcome: Outcome, calls: int) -> None:
    wire = Wire(status, body)
    assert [result.outcome for result in await outcomes(wire, effect(rename_to="n@b.example"))] == [outcome]
    assert len(wire.asked) == calls


async def test_a_rename_onto_a_taken_address_deletes_the_old_one() -> None:
    wire = Wire(400, {"code": "EmailAlreadyExists", "msg": "A user with email n@b.example exists"})
    await outcomes(wire, effect("o+x@b.example", rename_to="n@b.example"))
    assert [(method, path) for method, path, _ in wire.asked] == [
        ("POST", "/api/users/updateEmail"),
        ("DELETE", "/api/users/o%2Bx%40b.example"),
    ]


def test_a_user_is_one_request_item() -> None:
    assert user(effect("a@b", {"email": "A@b", "userId": "u1", "dataFields": {"x": 1, "email": "no"}}, on_delete="delete")) == {
        "email": "a@b",
        "userId": "u1",
        "mergeNestedObjects": True,
        "dataFields": {"x": 1},
    }


@pytest.mark.parametrize(
    ("old", "new", "want"),
    [
        ({}, {"a": 1}, {"a": 1}),
        ({"a": 1}, {}, {"a": None}),
        ({"a": None}, {}, {}),
        ({"o": {"a": 1, "b": 2}}, {"o": {"a": 1}}, {"o": {"a": 1, "b": None}}),
        ({"o": {"a": {"x": 1, "y": 2}}}, {"o": {"a": {"x": 1}}}, {"o": {"a": {"x": 1, "y": None}}}),
        ({"o": {"a": 1}}, {}, {"o": {"a": None}}),
        ({"o": {"a": 1}}, {"o": None}, {"o": None}),
        ({"o": {"a": 1}}, {"o": 3}, {"o": 3}),
        ({"o": 3}, {"o": {"a": 1}}, {"o": {"a": 1}}),
        ({"o": {}}, {}, {}),
    ],
)
def test_what_only_the_old_body_has_becomes_null(old: Body, new: Body, want: Body) -> None:
    before = orjson.dumps(new)
    assert cleared(old, new) == want
    assert orjson.dumps(new) == before
