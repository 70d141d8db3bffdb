"""Requests for children of parents (streams/salesforce/renames.py), as the fetch agent reads them, and which of them share a call. Pure."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from models.errors import PermanentError
from models.record_id import id18
from streams.engine.stage import Record
from streams.salesforce.rest import IDS_PER_CALL, check_id, check_name

LAST_SECOND = 253_402_300_799
"""Of the year 9999: no later time can be written."""


@dataclass(frozen=True, slots=True)
class Children:
    """One record of `fetch.<connection>`: the rows whose `through` is one of `parents`, or without them leads to one that
    changed since the epoch second `since`; behind the id `after`.
    """

    record: Record
    sobject: str
    through: str
    parents: tuple[str, ...]
    since: int
    after: str


def parse_children(record: Record, body: dict[str, Any], sobjects: Collection[str], connection: str) -> Children:
    """Of JSON that names `through`. Raises PermanentError."""
    sobject, through, after, parents = body.get("sobject"), body.get("through"), body.get("after"), body.get("parents", [])
    since, named = body.get("since", 0), isinstance(parents, list) and bool(parents) != ("since" in body)
    if not (isinstance(sobject, str) and isinstance(through, str) and isinstance(after, str) and type(since) is int and named):
        raise PermanentError('a request for children must be {"sobject": …, "through": …, "parents": […] or "since": 0, "after": ""}')
    if sobject not in sobjects:
        raise PermanentError(f"no route reads '{sobject[:60]}' of {connection} any more: nothing is to be done")
    if len(parents) > IDS_PER_CALL or not all(isinstance(parent, str) for parent in parents):
        raise PermanentError(f"a request for children names 1 to {IDS_PER_CALL} parents")
    found = tuple(id18(check_id(parent)) for parent in parents)
    return Children(record, sobject, check_name(through), found, min(max(since, 0), LAST_SECOND), check_id(after) if after else "")


def together_of(requests: Sequence[Children]) -> list[list[Children]]:
    """Requests that one call answers: first pages of one relationship share calls, each parent once; a following page is its own."""
    found: list[list[Children]] = []
    first: dict[tuple[str, str], dict[str, Children]] = defaultdict(dict)
    since: dict[tuple[str, str], list[Children]] = defaultdict(list)
    for request in requests:
        if request.after or len(request.parents) > 1:
            found.append([request])
        elif not request.parents:
            since[request.sobject, request.through].append(request)
        else:
            first[request.sobject, request.through].setdefault(request.parents[0], request)
    for by_parent in first.values():
        each = list(by_parent.values())
        found += [each[start : start + IDS_PER_CALL] for start in range(0, len(each), IDS_PER_CALL)]
    return [*found, *since.values()]
