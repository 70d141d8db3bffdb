"""Checks a written value against its field and gives the form it is kept in. No state.

Kept forms: date-times as `2026-05-04T09:30:11.000Z` (fixed width, so they sort as text), dates as text, numbers as sent, `""` as null.
"""

import re
from datetime import UTC, date, datetime
from typing import Any

from deploy.sandbox.salesforce import ids
from deploy.sandbox.salesforce.errors import SalesforceError, bad
from deploy.sandbox.salesforce.schema import Field, SObject

_EMAIL = re.compile(r"[^@\s<>,;\"']+@[^@\s<>,;\"'.]+(\.[^@\s<>,;\"'.]+)+")
_NUMBERS = frozenset({"int", "double", "currency", "percent"})
STAGES = {  # probability, forecast category, closed, won
    "Prospecting": (10, "Pipeline", False, False),
    "Qualification": (20, "Pipeline", False, False),
    "Proposal/Price Quote": (60, "BestCase", False, False),
    "Negotiation/Review": (80, "Forecast", False, False),
    "Closed Won": (100, "Closed", True, True),
    "Closed Lost": (0, "Omitted", True, False),
}


def iso(seconds: float) -> str:
    """Seconds since 1970 → kept form of a date-time, whole seconds."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def datetime_text(text: str) -> str | None:
    """Any ISO 8601 date-time with a zone → kept form, else None."""
    if len(text) < 17 or text[10] not in "Tt":
        return None
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            return None
        moment = moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return f"{moment:%Y}".zfill(4) + moment.strftime("-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def rest_form(field: Field, value: Any) -> Any:
    """A kept value as REST shows it: date-times end in `+0000`, events keep the `Z`."""
    return value[:-1] + "+0000" if field.type == "datetime" and value else value


def _mistyped(field: Field, value: Any) -> SalesforceError:
    kind = {bool: "BOOLEAN", str: "STRING", int: "INT", float: "FLOAT"}.get(type(value), "START_OBJECT")
    detail = (
        f"Cannot deserialize instance of {field.type} from VALUE_{kind} value {str(value)[:80]} or request may be missing a required field"
    )
    return bad("JSON_PARSER_ERROR", detail)


def check(field: Field, value: Any) -> Any:
    """The kept form of `value`; SalesforceError with the code that Salesforce uses where it does not fit."""
    if value is None or value == "":
        return False if field.type == "boolean" else None
    if field.type == "boolean":
        if isinstance(value, bool):
            return value
        raise _mistyped(field, value)
    if field.type in _NUMBERS:
        return _number(field, value)
    if not isinstance(value, str):
        raise _mistyped(field, value)
    if field.type == "datetime":
        if (moment := datetime_text(value)) is None:
            raise _mistyped(field, value)
        return moment
    if field.type == "date":
        try:
            return date.fromisoformat(value).isoformat()
        except ValueError:
            raise _mistyped(field, value) from None
    if field.type in ("reference", "id"):
        if (found := ids.normalize(value)) is None:
            raise bad("MALFORMED_ID", f"{field.label}: id value of incorrect type: {value[:80]}", field.name)
        return found
    return _text(field, value)


def _number(field: Field, value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _mistyped(field, value)
    if field.type == "int" and value != int(value):
        raise _mistyped(field, value)
    if abs(value) > (2**31 - 1 if field.type == "int" else 10**18):
        raise bad("NUMBER_OUTSIDE_VALID_RANGE", f"{field.label}: value outside of valid range on numeric field: {value}", field.name)
    return int(value) if field.type == "int" else value


def _text(field: Field, value: str) -> str | None:
    value = value.strip()
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise _mistyped(field, "a lone surrogate")
    if field.length and len(value) > field.length:
        raise bad("STRING_TOO_LONG", f"{field.label}: data value too large: {value[:255]} (max length={field.length})", field.name)
    if field.type == "email" and value and not _EMAIL.fullmatch(value):
        raise bad("INVALID_EMAIL_ADDRESS", f"{field.label}: invalid email address: {value}", field.name)
    return value or None


def derive(sobject: SObject, record: dict[str, Any], written: dict[str, Any]) -> None:
    """Set in place what the platform computes: a person's Name, a stage's consequences, IsClosed."""
    if "Name" in sobject.compounds and (sobject.name != "Account" or record.get("IsPersonAccount")):
        record["Name"] = " ".join(filter(None, (record.get("FirstName"), record.get("LastName")))) or None
    if sobject.name == "Opportunity":
        chance, category, record["IsClosed"], record["IsWon"] = STAGES.get(str(record.get("StageName")), (50, "Pipeline", False, False))
        if "Probability" not in written and ("StageName" in written or record.get("Probability") is None):
            record["Probability"] = chance
        record["ForecastCategory"] = record["ForecastCategoryName"] = category
        amount = record.get("Amount")
        record["ExpectedRevenue"] = None if amount is None else round(amount * (record.get("Probability") or 0) / 100, 2)
    elif sobject.name == "Task":
        record["IsClosed"] = record.get("Status") == "Completed"
        record["IsHighPriority"] = record.get("Priority") == "High"
    elif sobject.name == "Case":
        record["IsClosed"] = record.get("Status") == "Closed"
