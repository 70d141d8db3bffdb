"""Iterable as a target: users, known by their e-mail address, written through bulkUpdate.

A body is `{"email": …, "dataFields": {…}}`. What the image has and the body has not is sent as null, which removes it; objects are
merged, so what others keep beside ours stays. Everything of one user goes through bulkUpdate, one by one too: single and bulk endpoints
are separate queues at Iterable and would reorder. Failures come by address, not by place, so each address is once in a batch.
When nobody speaks for an address any longer: `delete` deletes the user, `tombstone` and `mark` set dataFields.deletedAtSource to true,
and a later write removes the flag. A changed address is a rename (updateEmail). Iterable cannot compare turns: the writer's order is all
there is.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import orjson
import structlog
from pydantic import Field, SecretStr

from agents.outbound import Answer, Outbound
from agents.rules.takes import NUMBERS, TEXTS, Takes
from agents.targets.base import Columns, Effect, Fault, Options, cleared
from models.errors import PausedError, PermanentError, TemporaryError
from models.learned import Rule
from models.scrub import scrub
from models.write import Body, Outcome, WriteResult

log = structlog.get_logger()

FLAG = "deletedAtSource"
USER_FIELDS = frozenset({"email", "userId", "dataFields"})
LARGEST = 4_000_000
LOOK_SECONDS = 0.02
"""Between two users that are read back: half of what Iterable allows."""
MISMATCH = "RequestFieldsTypesMismatched"
SPLITS = frozenset({"BadJsonBody", MISMATCH, "BatchTooLarge"})
"""Codes of a refused batch in which one user may be guilty; with any other every user of the batch would be refused again."""
KEY_CODES = frozenset({"BadApiKey", "BadAuthorizationHeader", "Forbidden", "Unauthorized", "InvalidJwtPayload"})
PASSING_CODES = frozenset({"RateLimitExceeded", "DatabaseError"})
UNKNOWN_CODES = frozenset({"UnknownEmailError", "NotFound"})
CLASSES = {
    "string": TEXTS,
    "keyword": TEXTS,
    "boolean": frozenset({"boolean"}),
    "date": frozenset({"date as text"}),
    "long": frozenset({"whole number"}),
    "double": NUMBERS,
    "object": frozenset({"object"}),
}
"""By type of a field the classes of values that it takes; of another type nothing is known."""
DEAD_BUCKETS = {
    "invalidEmails": ("Iterable refuses the e-mail address, as identifier or inside dataFields; mend it in the source", "email"),
    "invalidDataEmails": ("Iterable refuses a value in dataFields; compare the map's types with the project's field types", "dataFields"),
    "notFoundEmails": ("Iterable knows no user with this address", "email"),
}


class IterableOptions(Options):
    """api_key: a server-side key. base_url: https://api.eu.iterable.com for the EU. requests_per_second: of bulkUpdate, per project."""

    api_key: SecretStr
    base_url: str = Field(default="https://api.iterable.com", pattern=r"^https?://[^\s?#]+$")
    requests_per_second: float = Field(default=5.0, gt=0)


class Target:
    """See the protocol in base.py."""

    options_class = IterableOptions
    batch_records = 1000
    batch_bytes = 3_500_000
    compares = False
    renames = True
    key_field: str | None = "email"
    default_object: str | None = "users"

    def __init__(self, name: str, options: IterableOptions, installation: str) -> None:  # noqa: ARG002 - the protocol's
        self.name = name
        self.requests_per_second: float | None = options.requests_per_second
        self._http = Outbound(f"target {name}", options.base_url, {"Api-Key": options.api_key.get_secret_value()})
        self._told: set[str] = set()

    @staticmethod
    def refusal(name: str) -> str | None:
        """All else is in dataFields."""
        return None if name in USER_FIELDS else f"a user in Iterable has no {name} beside dataFields: write dataFields.{name}"

    def same_key(self, object: str, key: str) -> str:  # noqa: ARG002 - the protocol's
        """As Iterable compares addresses."""
        return key.strip().lower()

    def alone(self, effect: Effect) -> float | None:
        """A delete or a rename is a request of its own; their limit is 100/s where bulkUpdate's is 5/s. A mark, where we do not know what
        Iterable holds, needs a look first: bulkUpdate would make a user of nothing but the flag.
        """
        if effect.json is not None:
            return None
        looks = effect.rename_to is None and effect.on_delete != "delete"
        return None if looks and effect.was is not None else 0.05  # a look has the same limit, and few find somebody to mark

    async def start(self, objects: Mapping[str, Columns]) -> None:
        """Refuse maps that write elsewhere than Iterable reads, then see whether the key is good."""
        for object_name, columns in objects.items():
            if object_name != self.default_object:
                raise PausedError(f"target {self.name} has users only, not {object_name!r}; leave `object` out in the route")
            if strange := sorted(set(columns) - USER_FIELDS):
                raise PausedError(f"target {self.name}: the map writes {strange} beside dataFields; write `dataFields.<name>` in the map")
        await self.probe()

    async def probe(self) -> None:
        """Read a user who does not exist."""
        answer = await self._http.request("GET", "/api/users/getByEmail?email=probe%40headrace.invalid")
        if answer.status != 400:
            self._check(answer)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close()

    async def write(self, effects: Sequence[Effect]) -> list[WriteResult]:
        """One bulkUpdate for all, or the one delete or rename that came alone."""
        if len(effects) == 1 and self.alone(effects[0]) is not None:
            effect = effects[0]
            if effect.rename_to is not None:
                return [await self._rename(effect, effect.rename_to)]
            if effect.on_delete == "delete":
                return [await self._delete(effect.key)]
            if not await self._is_known(effect.key):
                return [WriteResult(Outcome.DELETED)]
        payload = orjson.dumps({"users": [user(effect) for effect in effects]})
        if len(payload) > LARGEST:
            raise PermanentError(f"target {self.name}: {len(payload)} bytes are more than Iterable takes in one request ({LARGEST})")
        answer = await self._http.request("POST", "/api/users/bulkUpdate", payload)
        if (code := self._check(answer)) is not None:
            said = self._said(answer, code)
            if code in SPLITS or answer.status == 413 or (len(effects) > 1 and answer.status == 409):
                raise PermanentError(said, field=_culprit(answer, code), rule="type" if code == MISMATCH else None)
            outcome = Outcome.SUPPRESSED if code == "ForgottenUserError" else Outcome.DEAD
            return [WriteResult(outcome, said, _culprit(answer, code))] * len(effects)
        return self._results(effects, answer)

    def _results(self, effects: Sequence[Effect], answer: Answer) -> list[WriteResult]:
        """Each address found back in the buckets; whoever cannot be found makes the batch be written again in halves."""
        told = answer.json
        if not isinstance(told, dict) or not isinstance(told.get("successCount"), int):
            raise TemporaryError(f"target {self.name}: the answer to bulkUpdate cannot be read, so its outcome is unknown: {answer.text}")
        self._fields(told)
        buckets = _buckets(told)
        results: list[WriteResult] = []
        failed = 0
        for effect in effects:
            key = effect.key
            dead = next((why for name, why in DEAD_BUCKETS.items() if key in buckets.get(name, ())), None)
            if dead is not None:
                rule: Rule | None = "value" if dead[1] == self.key_field else None
                result = WriteResult(Outcome.DEAD, f"target {self.name}: {dead[0]}", dead[1], rule=rule)
            elif key in buckets.get("forgottenEmails", ()):
                result = WriteResult(Outcome.SUPPRESSED, f"target {self.name}: this person was forgotten in Iterable")
            elif effect.json is None:
                result = WriteResult(Outcome.DELETED)
            else:
                result = WriteResult(Outcome.UNCHANGED if key in buckets.get("noOpEmails", ()) else Outcome.WRITTEN)
            failed += result.outcome in (Outcome.DEAD, Outcome.SUPPRESSED)
            results.append(result)
        if failed != int(told.get("failCount") or 0) or any(buckets.get(name) for name in ("conflictEmails", "conflictUserIds")):
            reason = f"target {self.name}: Iterable reports a conflict of identifiers or a failure that names no user of the request"
            if len(effects) > 1:
                raise PermanentError(reason)
            if failed == 0:
                return [WriteResult(Outcome.DEAD, reason, "email")]
        return results

    async def describe(self, object: str) -> Mapping[str, Takes]:  # noqa: ARG002 - the protocol's
        """The types that the project has given its fields."""
        answer = await self._http.request("GET", "/api/users/getFields")
        if (code := self._check(answer)) is not None:
            raise PermanentError(self._said(answer, code))
        told = answer.json.get("fields") if isinstance(answer.json, dict) else None
        types = told.items() if isinstance(told, dict) else ()
        return {f"dataFields.{name}": Takes(classes=CLASSES[str(kind)]) for name, kind in types if str(kind) in CLASSES}

    async def differing(self, object: str, expected: Mapping[str, Body]) -> Mapping[str, Fault]:  # noqa: ARG002 - the protocol's
        """Reads each user back, one after another: what others keep beside ours is theirs."""
        found: dict[str, Fault] = {}
        for key, body in expected.items():
            known = await self._user(key)
            fields = None if known is None else known.get("dataFields") or {}
            if fields is None:
                found[key] = "missing"
            elif fields.get(FLAG) is True:
                found[key] = "deleted"
            elif not _holds(fields, {n: v for n, v in (body.get("dataFields") or {}).items() if n not in ("email", "userId")}):
                found[key] = "changed"
            await asyncio.sleep(LOOK_SECONDS)
        return found

    async def _delete(self, key: str) -> WriteResult:
        """Delete one user; one who is not there is deleted already."""
        answer = await self._http.request("DELETE", f"/api/users/{quote(key, safe='')}")
        if (code := self._check(answer, missing=True)) is None or _is_unknown(answer, code):
            return WriteResult(Outcome.DELETED)
        return WriteResult(Outcome.DEAD, self._said(answer, code), "email")

    async def _is_known(self, key: str) -> bool:
        """Whether there is such a user."""
        try:
            return await self._user(key) is not None
        except PermanentError:
            return True  # bulkUpdate will say what is wrong with it

    async def _user(self, key: str) -> Body | None:
        """A user as Iterable holds it. Unknown is {} or an empty user, both under 200."""
        answer = await self._http.request("GET", f"/api/users/getByEmail?email={quote(key, safe='')}")
        if (code := self._check(answer, missing=True)) is not None:
            if _is_unknown(answer, code):
                return None
            raise PermanentError(self._said(answer, code), field="email")
        told = answer.json
        user = told.get("user") if isinstance(told, dict) else None
        return user if isinstance(user, dict) and user.get("email") else None

    async def _rename(self, effect: Effect, successor: str) -> WriteResult:
        """Give one user the new address; where that is taken or forgotten, the old one is deleted. An unknown old one needs nothing."""
        body = orjson.dumps({"currentEmail": effect.key, "newEmail": successor})
        answer = await self._http.request("POST", "/api/users/updateEmail", body)
        if (code := self._check(answer, missing=True)) is None:
            return WriteResult(Outcome.WRITTEN)
        words = answer.text.lower()
        if _is_unknown(answer, code) or "currentemail" in words:
            return WriteResult(Outcome.DELETED)
        if "exists" in words or code in ("EmailAlreadyExists", "ForgottenUserError") or answer.status == 409:
            return await self._delete(effect.key)
        return WriteResult(Outcome.DEAD, self._said(answer, code), "email")

    def _check(self, answer: Answer, *, missing: bool = False) -> str | None:
        """None for success, else the code of a refusal of this request; raises what concerns the project or passes by itself.

        Status first, body second: bodies with code "Success" have been seen under 400 and 401. `missing`: 404 in JSON may mean the user.
        """
        status, told = answer.status, answer.json
        code = str(told.get("code") or "") if isinstance(told, dict) else ""
        if 200 <= status < 300 and code in ("", "Success"):
            return None
        if status == 429 or code in PASSING_CODES:
            raise TemporaryError(self._said(answer, code), retry_after=answer.retry_after)
        if status in (401, 403) or code in KEY_CODES:
            raise PausedError(f"{self._said(answer, code)}; give a valid server-side key with the right to write users")
        if status == 408 or (status >= 500 and code != MISMATCH):
            raise TemporaryError(self._said(answer, code), retry_after=answer.retry_after)
        if 300 <= status < 400 or (status in (404, 405) and not (missing and isinstance(told, dict))):
            raise PausedError(f"{self._said(answer, code)}; this is no Iterable API: check base_url")
        return code or f"status {status}"

    def _said(self, answer: Answer, code: str) -> str:
        told = answer.json
        message = scrub(str(told.get("msg") or told.get("message") or ""), 300) if isinstance(told, dict) else answer.text
        return f"target {self.name}: Iterable answers {answer.status} {scrub(code, 60)}: {message}"

    def _fields(self, told: Mapping[str, Any]) -> None:
        """Say once what Iterable dropped or added in the project."""
        for name in ("filteredOutFields", "createdFields"):
            for field in told.get(name) or ():
                if (mark := f"{name} {field}"[:200]) not in self._told and len(self._told) < 5000:
                    self._told.add(mark)
                    log.warning(
                        "field dropped" if name == "filteredOutFields" else "field created", target=self.name, field=scrub(str(field), 100)
                    )


def user(effect: Effect) -> Body:
    """One element of `users`."""
    item: Body = {"email": effect.key, "mergeNestedObjects": True}
    if (body := effect.body) is None:
        return {**item, "dataFields": {FLAG: True}}
    fields = {name: value for name, value in (body.get("dataFields") or {}).items() if name not in ("email", "userId")}
    if (image := effect.image) is not None:
        fields = cleared(image.get("dataFields") or {}, fields)
    if effect.on_delete in ("mark", "tombstone"):
        fields.setdefault(FLAG, None)  # a profile that was marked may have come under this key by a rename, whatever its image says
    if (user_id := body.get("userId")) is not None:
        item["userId"] = user_id
    return {**item, "dataFields": fields}


def _holds(held: Any, body: Mapping[str, Any]) -> bool:
    """Whether a user has all of a body; null and an empty object are nothing. Iterable writes times in a form of its own."""
    found = held if isinstance(held, dict) else {}
    for name, value in body.items():
        there = found.get(name)
        if isinstance(value, dict):
            if not _holds(there, value):
                return False
        elif there != value and (_moment(there) is None or _moment(there) != _moment(value)):
            return False
    return True


def _moment(value: Any) -> datetime | None:
    """A text that is a time, else None."""
    try:
        found = datetime.fromisoformat(value.replace(" +", "+"))
    except (AttributeError, ValueError):
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _buckets(told: Mapping[str, Any]) -> dict[str, set[str]]:
    """Addresses by bucket, normalised; the deprecated top-level ones (all there was in 2017) count as well."""
    found: dict[str, set[str]] = {}
    for part in (told, told.get("failedUpdates")):
        if isinstance(part, Mapping):
            for name, values in part.items():
                if isinstance(values, list) and name.endswith(("Emails", "UserIds")):
                    found.setdefault(name, set()).update(str(value).strip().lower() for value in values)
    return found


def _is_unknown(answer: Answer, code: str) -> bool:
    words = answer.text.lower()
    return answer.status == 404 or code in UNKNOWN_CODES or "not exist" in words or "no user" in words


def _culprit(answer: Answer, code: str) -> str | None:
    """The field a refusal names, as a path in the body; its index in the batch is not to be trusted."""
    found = next(_params(answer.json), None)
    return f"dataFields.{found}" if found is not None and code == MISMATCH else found


def _params(told: Any) -> Iterator[str]:
    params = told.get("params") if isinstance(told, dict) else None
    if isinstance(params, dict):
        errors = params.get("validationErrors")
        yield from map(str, errors if isinstance(errors, dict) else params)
