"""Parents before children: in which order sObjects are read, so that a child's parent is on its way before it."""

from collections.abc import Collection, Mapping, Sequence

from models.errors import PermanentError
from streams.salesforce.rest import Rest, Row
from streams.salesforce.retry import retried


def parents_first(sobjects: Sequence[str], parents: Mapping[str, Collection[str]]) -> list[str]:
    """Of those that could be next the first in the given order; in a circle the one with the fewest parents left. Pure."""
    left = list(dict.fromkeys(sobjects))
    found: list[str] = []
    while left:
        after = [len({p for p in parents.get(name, ()) if p in left and p != name}) for name in left]
        found.append(left.pop(after.index(min(after))))
    return found


def parents_of(described: Row) -> set[str]:
    """The sObjects that its fields refer to. Of a polymorphic field any may be meant."""
    return {str(name) for field in described.get("fields") or () for name in field.get("referenceTo") or ()}


async def order_of(rest: Rest, sobjects: Sequence[str]) -> list[str]:
    """Asks describe of each; one that the user may not see has no parents. Raises FatalError, SettingsError."""
    if len(sobjects) < 2:
        return list(sobjects)
    parents: dict[str, set[str]] = {}
    for name in sobjects:
        try:
            parents[name] = parents_of(await retried(lambda name=name: rest.describe(name), "describe"))  # type: ignore[misc]
        except PermanentError:
            parents[name] = set()
    return parents_first(sobjects, parents)
