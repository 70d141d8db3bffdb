"""Whether the org has what a canary needs: the platform event, or the record and a field of it that can be changed. Reads only."""

from contextlib import suppress

from deploy.check_org import Org
from models.errors import PermanentError
from models.flow import Canary
from streams.salesforce.canary import LENGTH
from streams.salesforce.rest import Rest, Row


async def canary_misfit(canary: Canary, org: Org, rest: Rest) -> tuple[str, str] | None:
    """What is wrong, and the remedy. Raises what calls raise."""
    sobject, field = canary.sobject, canary.field or ""
    misfits = await org.misfits(sobject, [field] if field else ())
    if canary.event:
        remedy = "define it in Setup, Platform Events (no fields are needed), and let the user create it"
        return (f"the org knows no platform event {sobject}, or hides it from the user", remedy) if misfits else None
    if misfits:
        return misfits[0].message, misfits[0].remedy
    told = next(one for one in (await rest.describe(sobject))["fields"] if one["name"] == field)
    if told.get("type") not in ("string", "textarea") or int(told.get("length") or 0) < LENGTH:
        return f"{sobject}.{field} cannot hold what the canary writes", f"name a text field of {LENGTH} characters or more"
    if not told.get("updateable"):
        return (
            f"the user may not change {sobject}.{field}, by which the canary is heard",
            "grant Edit on the object and the field to the user",
        )
    rows: list[Row] = []
    with suppress(PermanentError):  # an id that cannot be one
        rows = (await rest.by_ids(sobject, ["Id", "IsDeleted"], [canary.record_id], "describe")).rows
    if not rows or rows[0].get("IsDeleted"):
        return f"the org has no record {canary.record_id} of {sobject}, or hides it from the user", "make one, and name its id"
    return None
