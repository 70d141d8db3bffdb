"""Whether the org has what the flow reads: sObjects and fields, by describe. What the user may not see is not in a describe, so hidden and
unknown look alike; the remedy names both. Reads only.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from models.errors import PausedError, PermanentError
from models.flow import is_event
from streams.yaml_lines import did_you_mean

Described = Mapping[str, Any]
Describe = Callable[[str], Awaitable[Described]]


@dataclass(frozen=True, slots=True)
class Misfit:
    """`path` is the field that is not there, None: the sObject itself."""

    path: str | None
    message: str
    remedy: str


class Org:
    """Describes of one org, each asked for once. `ask` raises what Rest.describe raises."""

    def __init__(self, connection: str, ask: Describe) -> None:
        self._connection, self._ask = connection, ask
        self._known: dict[str, Described | None] = {}

    async def misfits(self, sobject: str, paths: Iterable[str]) -> list[Misfit]:
        """What of the sObject's paths ("Email", "Owner.Email") is not there for this user. Raises TemporaryError, PausedError."""
        found = await self._describe(sobject)
        if found is None:
            remedy = f"check its API name, or give the user of {self._connection} Read on the object"
            return [Misfit(None, f"the org knows no sObject {sobject}, or hides it from the user", remedy)]
        if is_event(sobject):
            names = [*(str(field["name"]) for field in found.get("fields", ())), "EventUuid", "ReplayId"]
            hint = "map the event's own fields, EventUuid or ReplayId"
            return [
                Misfit(path, f"the event {sobject} has no field {path}", did_you_mean(path, names, hint))
                for path in paths
                if path not in names
            ]
        if not found.get("queryable", True):
            return [Misfit(None, f"{sobject} cannot be queried", "read another sObject: this one sends no rows")]
        return [misfit for path in paths if (misfit := await self._misfit(found, sobject, path)) is not None]

    async def _misfit(self, found: Described, sobject: str, path: str) -> Misfit | None:
        head, _, rest = path.partition(".")
        if not rest:
            names = [str(field["name"]) for field in found.get("fields", ())]
            if path in names:
                return None
            if path.lower() in map(str.lower, names):
                return Misfit(path, f"{sobject} has no field {path}, in this spelling", did_you_mean(path, names))
            near = did_you_mean(path, names) if len(names) else ""
            hint = near if near.startswith("did you mean") else "check its API name"
            return Misfit(path, f"{sobject} has no field {path}, or hides it from the user", f"{hint}; or grant the field to the user")
        links = {str(field["relationshipName"]): field for field in found.get("fields", ()) if field.get("relationshipName")}
        if head not in links:
            return Misfit(path, f"{sobject} has no relationship {head}", did_you_mean(head, links, "check its name"))
        misfit = None
        for parent in links[head].get("referenceTo") or ():  # of several parents (User, Group) one that has the field is enough
            described = await self._describe(parent)
            misfit = None if described is None else await self._misfit(described, parent, rest)
            if described is not None and misfit is None:
                return None
        if misfit is None:
            return Misfit(path, f"{sobject}.{head} leads to nothing the user may see", f"give the user Read on what {head} names")
        return Misfit(path, misfit.message, misfit.remedy)

    async def _describe(self, sobject: str) -> Described | None:
        if sobject not in self._known:
            try:
                self._known[sobject] = await self._ask(sobject)
            except PermanentError:
                self._known[sobject] = None
            except PausedError as error:
                if "INSUFFICIENT_ACCESS" not in error.reason:
                    raise
                self._known[sobject] = None
        return self._known[sobject]
