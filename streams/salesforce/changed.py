"""What polling asks Salesforce: rows by their stamps, and which records were deleted. It never writes."""

import hashlib
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import orjson

from models.errors import TemporaryError
from models.scrub import scrub
from streams.salesforce.conditions import changed_since
from streams.salesforce.rest import Answer, Rest, check_id, check_name, json_of, split_fields

STAMP = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,6})?)(?:Z|\+00:?00)")


def check_stamp(raw: str) -> str:
    """A date-time of a row, as SOQL takes it. Raises TemporaryError."""
    if not (found := STAMP.fullmatch(raw)):
        raise TemporaryError(f"Salesforce gave a SystemModstamp that is none: '{scrub(raw, 40)}'")
    return f"{found[1]}Z"


def second_of_stamp(raw: Any) -> int | None:
    """Epoch s of a date-time of a row; None for what is none."""
    found = STAMP.fullmatch(raw) if isinstance(raw, str) else None
    try:
        return None if found is None else int(datetime.fromisoformat(f"{found[1]}+00:00").timestamp())
    except ValueError:  # the 99th of a month
        return None


def print_of(read: Any) -> bytes:
    """Tells what was read of a row, however its fields are ordered, from anything else."""
    return hashlib.blake2b(orjson.dumps(read, option=orjson.OPT_SORT_KEYS), digest_size=12).digest()


async def changed(rest: Rest, sobject: str, fields: Sequence[str], since: int, after: tuple[str, str] | None, purpose: str) -> Answer:
    """The next rows, deleted ones too, by (SystemModstamp, Id): from an epoch second on, behind the row `after` (its stamp and Id, as
    read); fewer than `rest.page_size` are the last ones.
    """
    first, *others = split_fields(["SystemModstamp", *fields])
    where = changed_since(since)
    if after is not None:
        stamp = check_stamp(after[0])
        where = f"SystemModstamp >= {stamp} AND (SystemModstamp > {stamp} OR Id > '{check_id(after[1])}')"
    order = f"ORDER BY SystemModstamp, Id LIMIT {rest.page_size}"
    soql = f"SELECT {','.join(first)} FROM {check_name(sobject)} WHERE {where} {order}"  # noqa: S608
    return await rest.whole(sobject, await rest.query(soql, purpose, deleted=True), others, purpose)


async def deleted(rest: Rest, sobject: str, start: int, end: int, purpose: str) -> tuple[list[str], int]:
    """Ids deleted between two epoch seconds (whole minutes count), purged ones too; and through which second that is complete."""
    times = "&".join(f"{name}={datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:00Z}" for name, at in (("start", start), ("end", end)))
    body = await rest.send(f"sobjects/{check_name(sobject)}/deleted/?{times}", purpose, json_of)
    found, covered = body.get("deletedRecords"), second_of_stamp(body.get("latestDateCovered"))
    if not isinstance(found, list) or covered is None or not all(isinstance(r, dict) and isinstance(r.get("id"), str) for r in found):
        raise TemporaryError("Salesforce answered the question for deleted records without a list of them")
    return [check_id(r["id"]) for r in found], covered


async def in_bin(rest: Rest, sobject: str, since: int, purpose: str) -> set[str]:
    """Ids deleted since an epoch second that are still in the recycle bin."""
    where = f"IsDeleted = true AND {changed_since(since)}"
    answer = await rest.query(f"SELECT Id FROM {check_name(sobject)} WHERE {where}", purpose, deleted=True)  # noqa: S608
    return {str(row["Id"]) for row in answer.rows}
