"""The profiles of one e-mail-based project and what the user calls do to them. No HTTP: answers are (status, body)."""

import hashlib
import re
import time
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from deploy.sandbox.iterable.fieldtypes import FieldTypes, moment, unusable

Answer = tuple[int, Any]
_EMAIL = re.compile(r"[^@\s,;<>\"]{1,64}@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+")
BUCKETS = [f"{kind}{who}" for kind in ("invalid", "notFound", "invalidData", "conflict", "forgotten") for who in ("Emails", "UserIds")]
_KINDS: dict[str, tuple[type, str]] = {
    "email": (str, "String value expected"),
    "userId": (str, "String value expected"),
    "dataFields": (dict, "Object value expected"),
    "mergeNestedObjects": (bool, "Boolean value expected"),
    "preferUserId": (bool, "Boolean value expected"),
    "createNewFields": (bool, "Boolean value expected"),
}


@dataclass(slots=True)
class Profile:
    email: str
    user_id: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    created: float = field(default_factory=time.time)
    updated: float = field(default_factory=time.time)


def error(status: int, code: str, msg: str, params: Any = None) -> Answer:
    return status, {"msg": msg, "code": code, "params": params}


SUCCESS: Answer = (200, {"msg": "", "code": "Success", "params": None})


def normal(email: str) -> str:
    return email.strip().lower()


def valid_email(email: str) -> bool:
    return len(email) <= 255 and email.isprintable() and _EMAIL.fullmatch(email.strip()) is not None


def valid_user_id(user_id: str) -> bool:
    return 0 < len(user_id) <= 52 and user_id.isascii() and user_id.isprintable() and not user_id.endswith(" ")


def shown(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S +00:00")


class Project:
    """Profiles by normalised address; a deletion may take its time (`delete_lag` seconds)."""

    def __init__(self, number: int = 2158) -> None:
        self.number = number
        self.profiles: dict[str, Profile] = {}
        self.by_user_id: dict[str, set[str]] = {}
        self.types = FieldTypes()
        self.forgotten: set[str] = set()
        self.delete_lag = 0.0
        self.create_new_fields = True
        self._leaving: list[tuple[float, Profile]] = []

    def settle(self) -> None:
        """Carry out the deletions that are due."""
        now = time.monotonic()
        due, self._leaving = [p for t, p in self._leaving if t <= now], [(t, p) for t, p in self._leaving if t > now]
        for profile in due:
            if self.profiles.get(profile.email) is profile:
                self._drop(profile)

    def _drop(self, profile: Profile) -> None:
        self.profiles.pop(profile.email, None)
        self._own(profile, None)

    def _own(self, profile: Profile, user_id: str | None) -> None:
        if profile.user_id is not None:
            self.by_user_id.get(profile.user_id, set()).discard(profile.email)
        profile.user_id = user_id
        if user_id is not None:
            self.by_user_id.setdefault(user_id, set()).add(profile.email)

    def bulk_update(self, body: Any) -> Answer:
        """`POST /api/users/bulkUpdate`: refused as a whole for a wrong kind of value, else each user has a fate of its own."""
        users = body.get("users") if isinstance(body, dict) else None
        if not isinstance(users, list):
            return _bad_json("/api/users/bulkUpdate", {"obj.users": "List value expected"})
        if not users:
            return error(400, "InvalidEmailAddressError", "Emails invalid: ")
        wrong = {k: t for number, item in enumerate(users) for k, t in _misshapen(item, f"obj.users[{number}]").items()}
        if wrong := wrong | ({"obj.createNewFields": _KINDS["createNewFields"][1]} if _wrong(body, "createNewFields") else {}):
            return _bad_json("/api/users/bulkUpdate", wrong)
        types = self.types.copy()
        for item in users:
            if mismatches := types.mismatches(item.get("dataFields") or {}):
                return _mismatched(mismatches)
            types.learn(item.get("dataFields") or {})
        new_allowed = bool(body.get("createNewFields", self.create_new_fields))
        failed: dict[str, list[str]] = {b: [] for b in BUCKETS}
        told: dict[str, list[str]] = {"filteredOutFields": [], "createdFields": [], "noOpEmails": [], "noOpUserIds": []}
        good = 0
        for item in users:
            if fate := self._refusal(item):
                failed[fate[0]].append(fate[1])
                continue
            good += 1
            if not self._apply(item, new_allowed, told):
                told["noOpEmails" if item.get("email") else "noOpUserIds"].append(item.get("email") or item["userId"])
        counts = {"successCount": good, "failCount": len(users) - good}
        deprecated = {"invalidEmails": failed["invalidEmails"], "invalidUserIds": failed["invalidUserIds"]}
        return 200, counts | deprecated | told | {"failedUpdates": failed}

    def update(self, body: Any) -> Answer:
        """`POST /api/users/update`."""
        if wrong := _misshapen(body, "obj"):
            return _bad_json("/api/users/update", wrong)
        if mismatches := self.types.mismatches(body.get("dataFields") or {}):
            return _mismatched(mismatches)
        if fate := self._refusal(body):
            bucket, who = fate
            if bucket.startswith("forgotten"):
                return error(409, "ForgottenUserError", "User has been forgotten")
            if bucket.startswith("conflict"):
                return error(409, "EmailAlreadyExists", "The identity change conflicts with a user that exists")
            if bucket.startswith("invalidData"):
                return error(400, "BadParams", "Invalid value in dataFields")
            code = (
                ("InvalidEmailAddressError", f"Invalid email: {who}")
                if bucket == "invalidEmails"
                else ("InvalidUserIdError", f"Invalid userId: {who}")
            )
            return error(400, *code)
        new_allowed = bool(body.get("createNewFields", self.create_new_fields))
        self._apply(body, new_allowed, {"filteredOutFields": [], "createdFields": []})
        return SUCCESS

    def _refusal(self, item: dict[str, Any]) -> tuple[str, str] | None:
        """The bucket of a user that cannot be written, and who is told in it."""
        email, user_id, fields = item.get("email"), item.get("userId"), item.get("dataFields") or {}
        who = "Emails" if email is not None else "UserIds"
        name = email if email is not None else user_id or ""
        if email is not None and not valid_email(email):
            return "invalidEmails", email
        if email is None and not valid_user_id(user_id or ""):
            return "invalidUserIds", user_id or ""
        if user_id is not None and not valid_user_id(user_id):
            return "invalidUserIds", user_id
        if email is None and not self.by_user_id.get(str(user_id)) and not item.get("preferUserId"):
            return "invalidUserIds", str(user_id)  # an e-mail-based project knows no user by a new id alone
        if email is not None and normal(email) in self.forgotten:
            return "forgottenEmails", email
        inner = fields.get("email")
        if isinstance(inner, str) and not valid_email(inner):
            return "invalidEmails", inner
        if isinstance(inner, str) and email is not None and normal(inner) != normal(email):
            return ("conflictEmails", inner) if normal(inner) in self.profiles else (f"invalidData{who}", name)
        inner_id = fields.get("userId")
        if isinstance(inner_id, str) and not valid_user_id(inner_id):
            return "invalidUserIds", inner_id
        if unusable(fields):
            return f"invalidData{who}", name
        return None

    def _apply(self, item: dict[str, Any], new_allowed: bool, told: dict[str, list[str]]) -> bool:
        """Write one user; whether that changed anything."""
        fields = {k: v for k, v in (item.get("dataFields") or {}).items() if k not in ("email", "userId")}
        if not new_allowed:
            told["filteredOutFields"] += [k for k in fields if k not in self.types.known and k not in told["filteredOutFields"]]
            fields = {k: v for k, v in fields.items() if k in self.types.known}
        told["createdFields"] += self.types.learn(fields)
        profile, new = self._profile(item)
        user_id = item.get("userId") or (item.get("dataFields") or {}).get("userId") or profile.user_id
        before = (profile.user_id, dict(profile.fields))
        self._own(profile, user_id)
        for name, value in fields.items():
            old = profile.fields.get(name)
            if value is None:
                profile.fields.pop(name, None)
            elif isinstance(value, dict) and isinstance(old, dict) and item.get("mergeNestedObjects"):
                # one level deep: a sub-object that is sent replaces the old one, one that is not sent stays
                merged = {k: v for k, v in (old | value).items() if v is not None}
                profile.fields[name] = merged
            else:
                profile.fields[name] = _without_nulls(value)
        changed = new or before != (profile.user_id, profile.fields)
        if changed:
            profile.updated = time.time()
        return changed

    def _profile(self, item: dict[str, Any]) -> tuple[Profile, bool]:
        if item.get("email") is not None:
            email = normal(item["email"])
        else:
            email = min(self.by_user_id.get(item["userId"], set()), default=f"{uuid.uuid4().hex}@placeholder.email")
        new = email not in self.profiles
        return self.profiles.setdefault(email, Profile(email)), new

    def update_email(self, body: Any) -> Answer:
        """`POST /api/users/updateEmail`."""
        if not isinstance(body, dict) or not isinstance(body.get("newEmail"), str):
            return _bad_json("/api/users/updateEmail", {"obj.newEmail": "String value expected"})
        current, user_id, new = body.get("currentEmail"), body.get("currentUserId"), body["newEmail"]
        if isinstance(current, str):
            if not valid_email(current):
                return error(400, "InvalidEmailAddressError", f"Invalid currentEmail {current}")
            profile = self.profiles.get(normal(current))
        else:
            profile = self.profiles.get(min(self.by_user_id.get(str(user_id), set()), default=""))
        if not valid_email(new):
            return error(400, "InvalidEmailAddressError", f"Invalid newEmail {new}")
        if normal(new) in self.forgotten:
            return error(409, "ForgottenUserError", "User has been forgotten")
        if profile is None:
            return error(400, "UnknownEmailError" if current else "UnknownUserIdError", f"No user with {current or user_id} exists")
        if normal(new) != profile.email and normal(new) in self.profiles:
            return error(400, "EmailAlreadyExists", f"A user with email {new} exists")
        self._rename(profile, normal(new))
        return SUCCESS

    def _rename(self, profile: Profile, email: str) -> None:
        user_id = profile.user_id
        self._drop(profile)
        profile.email, profile.updated = email, time.time()
        self.profiles[email] = profile
        self._own(profile, user_id)

    def merge(self, body: Any) -> Answer:
        """`POST /api/users/merge`, by addresses: the destination wins, the source fills; no destination renames the source."""
        source, target = (body.get("sourceEmail"), body.get("destinationEmail")) if isinstance(body, dict) else (None, None)
        if not isinstance(source, str) or not isinstance(target, str):
            return _bad_json(
                "/api/users/merge", {"obj.sourceEmail": "String value expected", "obj.destinationEmail": "String value expected"}
            )
        if normal(target) in self.forgotten or normal(source) in self.forgotten:
            return error(409, "ForgottenUserError", "User has been forgotten")
        found, into = self.profiles.get(normal(source)), self.profiles.get(normal(target))
        if found is None:
            return error(400, "UnknownEmailError", f"No user with {source} exists")
        if into is None:
            self._rename(found, normal(target))
        elif into is not found:
            into.fields = found.fields | into.fields
            into.updated = time.time()
            self._drop(found)
        return 200, {"msg": "Merged", "code": "Success", "params": None}

    def delete(self, email: str) -> Answer:
        """`DELETE /api/users/{email}`: after the lag; what is written meanwhile goes too."""
        if not valid_email(email):
            return error(400, "InvalidEmailAddressError", f"Invalid email: {email}")
        if (profile := self.profiles.get(normal(email))) is None:
            return error(400, "BadParams", f"User does not exist. Email: {email} UserId: ")
        self._leaving.append((time.monotonic() + self.delete_lag, profile))
        self.settle()
        return SUCCESS

    def delete_by_user_id(self, user_id: str) -> Answer:
        emails = self.by_user_id.get(user_id, set())
        if not emails:
            return error(400, "BadParams", f"User does not exist. Email:  UserId: {user_id}")
        self._leaving += [(time.monotonic() + self.delete_lag, self.profiles[e]) for e in emails]
        self.settle()
        return 200, {"msg": f"All users associated with {user_id} were successfully deleted", "code": "Success", "params": None}

    def get(self, email: str) -> Answer:
        if not valid_email(email):
            return error(400, "InvalidEmailAddressError", f"Invalid email: {email}")
        profile = self.profiles.get(normal(email))
        return (200, {"user": self.read_back(profile)}) if profile else (200, {})

    def get_by_user_id(self, user_id: str) -> Answer:
        email = min(self.by_user_id.get(user_id, set()), default=None)
        return (200, {"user": self.read_back(self.profiles[email])}) if email else (200, {"user": {"email": "", "userId": ""}})

    def forget(self, email: Any) -> Answer:
        if not isinstance(email, str) or not valid_email(email):
            return error(400, "InvalidEmailAddressError", f"Invalid email: {email}")
        self.forgotten.add(normal(email))
        if profile := self.profiles.get(normal(email)):
            self._drop(profile)
        return SUCCESS

    def unforget(self, email: Any) -> Answer:
        self.forgotten.discard(normal(str(email)))
        return SUCCESS

    def hashes(self) -> Answer:
        return 200, {"hashedEmails": sorted(hashlib.sha256(e.encode()).hexdigest() for e in self.forgotten)}

    def read_back(self, profile: Profile) -> dict[str, Any]:
        """A profile as the API shows it: dates in its own form, `email` and `userId` repeated inside."""
        known = {k: _shown_date(v) if self.types.known.get(k) == "date" else v for k, v in profile.fields.items()}
        inside = {
            "documentUpdatedAt": shown(profile.updated),
            "documentCreatedAt": shown(profile.created),
            "emailDomain": profile.email.partition("@")[2],
        }
        given = {
            "email": profile.email,
            "signupDate": shown(profile.created),
            "profileUpdatedAt": shown(profile.updated),
            "signupSource": "API",
        }
        owner = {"userId": profile.user_id} if profile.user_id is not None else {}
        return {"email": profile.email, "dataFields": given | known | owner | {"itblInternal": inside}} | owner


def _shown_date(value: Any) -> Any:
    read = moment(value) if isinstance(value, str) else None
    return shown(read.timestamp()) if read else value


def _without_nulls(value: Any) -> Any:
    return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value


def _wrong(item: dict[str, Any], name: str) -> bool:
    return item.get(name) is not None and not isinstance(item[name], _KINDS[name][0])


def _misshapen(item: Any, where: str) -> dict[str, str]:
    if not isinstance(item, dict):
        return {where: "Object value expected"}
    return {f"{where}.{name}": text for name, (_, text) in _KINDS.items() if _wrong(item, name)}


def _bad_json(path: str, params: dict[str, str]) -> Answer:
    return error(400, "BadJsonBody", f"[{path}] Invalid JSON body", params)


def _mismatched(mismatches: dict[str, Any]) -> Answer:
    text = "The types of some fields of the request do not match those of the project"
    return error(400, "RequestFieldsTypesMismatched", text, {"validationErrors": mismatches})
