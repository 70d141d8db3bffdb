"""What a user may do, as SOQL tells it: UserPermissionAccess of the caller, ObjectPermissions of a user. No more than that."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from deploy.sandbox.salesforce.errors import bad
from deploy.sandbox.salesforce.query import Result

if TYPE_CHECKING:
    from deploy.sandbox.salesforce.org import Org

_OWN = re.compile(r"\s*SELECT\s+([\w\s,]+?)\s+FROM\s+UserPermissionAccess(?:\s+LIMIT\s+\d+)?\s*", re.IGNORECASE)
_SETS = r"SELECT\s+PermissionSetId\s+FROM\s+PermissionSetAssignment\s+WHERE\s+AssigneeId\s*=\s*'(\w{15,18})'"
_OBJECT = re.compile(
    r"\s*SELECT\s+Id\s+FROM\s+ObjectPermissions\s+WHERE\s+SobjectType\s*=\s*'(\w+)'\s+AND\s+PermissionsViewAllRecords\s*=\s*true"
    rf"\s+AND\s+ParentId\s+IN\s*\(\s*{_SETS}\s*\)\s*",
    re.IGNORECASE,
)


def answer(org: Org, text: str, user_id: str) -> Result | None:
    """The answer to a question about rights; None for every other query. Errors: INVALID_FIELD."""
    if found := _OWN.fullmatch(text):
        rights = org.access.of(user_id)
        known = {"permissionsviewalldata": rights.view_all_data, "permissionsmodifyalldata": False, "permissionsapienabled": True}
        row: dict[str, object] = {"attributes": {"type": "UserPermissionAccess"}}
        for name in (part.strip() for part in found[1].split(",")):
            if name.lower() not in known:
                raise bad("INVALID_FIELD", f"No such column '{name}' on entity 'UserPermissionAccess'.")
            row[name] = known[name.lower()]
        return Result(1, [row], dict)
    if found := _OBJECT.fullmatch(text):
        asked = org.schema.get(found[1])
        seen = asked is not None and (rights := org.access.of(found[2][:18])).views_all(asked.name) and not rights.view_all_data
        rows = [{"attributes": {"type": "ObjectPermissions"}, "Id": "110xx0000000001AAA"}] if seen else []
        return Result(len(rows), rows, dict)
    return None
