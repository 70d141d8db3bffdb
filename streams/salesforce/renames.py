"""What a change of a parent means for its children: a Contact's Account.Name is another one when the Account was renamed. Pure.

A relationship field has no event of its own, so the parent's event (or what was polled of it) becomes a request to read again the rows that
point to it. The request is stored in the transaction of the position or cursor; who answers it asks the org which rows these are.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import orjson

from models.change_event import Change, ChangeEvent
from models.flow import Salesforce, channel_sobject
from models.record_id import id18
from streams.engine.stage import Output
from streams.topics import Topics

USERS = ("CreatedBy", "LastModifiedBy", "Manager", "Owner")
LEADS_TO = dict.fromkeys(USERS, ("User",)) | {
    "ReportsTo": ("Contact",),
    "Who": ("Contact", "Lead"),
    "What": ("Account", "Opportunity", "Case"),
}
"""Of the standard relationships those whose name is not that of the object."""
NAMES = frozenset({"Name", "Salutation", "FirstName", "MiddleName", "LastName", "Suffix"})

Child = tuple[str, str]
"""sObject, and the path of the id by which it points to the parent ("AccountId", "Account.OwnerId")."""


def parents_of_path(sobject: str, path: str) -> Iterable[tuple[str, str, str]]:
    """(parent, its field, the child's path to its id) of each step of a relationship path: all that may change its value."""
    *links, last = path.split(".")
    reached: tuple[str, ...] = (sobject,)
    through = ""
    for at, link in enumerate(links):
        through += _key(link)
        field = _key(links[at + 1]) if at + 1 < len(links) else last
        reached = tuple(dict.fromkeys(parent for each in reached for parent in _parents(each, link)))
        for parent in reached:
            if field != "Id":
                yield parent, field, through
        through = f"{through.removesuffix(_key(link))}{link}."


def _key(link: str) -> str:
    return f"{link.removesuffix('__r')}__c" if link.endswith("__r") else f"{link}Id"


def _parents(sobject: str, link: str) -> tuple[str, ...]:
    if link.endswith("__r"):
        return (_key(link),)  # named as its object, as nearly always
    return (sobject,) if link == "Parent" else LEADS_TO.get(link, (link,))


class Followed:
    """What must be followed of one connection's parents. `fields`: columns of rows by source, relationship paths among them."""

    def __init__(self, connection: str, fields: Mapping[str, Sequence[str]], topics: Topics) -> None:
        self._topic = topics.fetch(connection)
        self.parents: dict[str, dict[str, set[Child]]] = defaultdict(lambda: defaultdict(set))
        """By sObject, by its field: who shows it."""
        for source, paths in fields.items():
            of, _, sobject = source.partition("/")
            for path in paths if of == connection else ():
                for parent, field, through in parents_of_path(sobject, path):
                    self.parents[parent][field].add((sobject, through))

    def of_event(self, event: ChangeEvent) -> list[Output]:
        """Requests that a parent's event asks for; none where no field that somebody shows changed."""
        if (follows := self.parents.get(event.sobject)) is None or event.change not in (Change.UPDATE, Change.GAP_UPDATE):
            return []
        if event.overflow or event.wildcard:
            return []
        told = None if event.gap else event.changed_fields
        changed = follows if told is None else [field for field in follows if any(_touches(name, field) for name in told)]
        return self.requests(event.sobject, changed, [id18(name) for name in event.ids])

    def requests(self, parent: str, changed: Iterable[str], ids: Iterable[str]) -> list[Output]:
        """One for each record and each way to its children."""
        children = sorted({child for field in changed for child in self.parents[parent][field]})
        return [children_request(self._topic, *child, [id]) for id in dict.fromkeys(ids) for child in children]

    def polled(self, config: Salesforce, channels: Sequence[str]) -> list[str]:
        """Parents whose changes must be asked for: users, of whom many orgs tell no changes, and what no channel that is read carries."""
        return [parent for parent in self.parents if parent == "User" or not any(_carries(config, c, parent) for c in channels)]


def children_request(topic: str, sobject: str, through: str, parents: Sequence[str], after: str = "") -> Output:
    """Of the rows whose `through` is one of the parents, those behind the id `after`."""
    value = {"sobject": sobject, "through": through, "parents": list(parents), "after": after}
    return Output(topic, parents[0].encode(), orjson.dumps(value))


def _carries(config: Salesforce, channel: str, sobject: str) -> bool:
    carried = config.channels.get(channel, ())
    return channel_sobject(channel) == sobject or (channel_sobject(channel) is None and (not carried or sobject in carried))


def _touches(changed: str, field: str) -> bool:
    """Whether a name of changedFields may mean a flat field. Rather once too often."""
    head = changed.partition(".")[0]
    if field == head or (head in NAMES and field == "Name") or (head == "Name" and field in NAMES):
        return True
    if head.endswith("Address"):
        return field.startswith(head.removesuffix("Address"))
    return head.endswith("__c") and field.startswith(head.removesuffix("c")) and field.endswith("__s")
