"""What a change of a parent means for its children: a Contact's Account.Name is another one when the Account was renamed. Pure.

A relationship field has no event of its own, so the parent's event (or what was polled of it) becomes a request to read again the rows that
point to it. Where it is not known which parents changed (an overflow, a refused position, events that were not delivered), the request is
for the rows whose parent changed since a time. It is stored in the transaction of the position, cursor or incident; who answers it asks
the org which rows these are.
"""

from collections.abc import Iterable, Mapping, Sequence

import orjson

from models.change_event import Change, ChangeEvent
from models.flow import Salesforce, channel_sobject
from models.record_id import id18
from streams.engine.stage import Output
from streams.salesforce.conditions import changed_since
from streams.salesforce.messages import BUFFER_SECONDS
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
Parents = Mapping[str, Mapping[str, set[Child]]]


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
        self._connection, self._fields, self._topic = connection, fields, topics.fetch(connection)
        self._made_of: dict[str, Sequence[str]] = {}
        self._parents: dict[str, dict[str, set[Child]]] = {}

    @property
    def parents(self) -> Parents:
        """By sObject, by its field: who shows it. As the maps are now."""
        if (now := dict(self._fields)) != self._made_of:
            self._made_of, self._parents = now, {}
            for source, paths in now.items():
                of, _, sobject = source.partition("/")
                for path in paths if of == self._connection else ():
                    for parent, field, through in parents_of_path(sobject, path):
                        self._parents.setdefault(parent, {}).setdefault(field, set()).add((sobject, through))
        return self._parents

    def of_event(self, event: ChangeEvent) -> list[Output]:
        """Requests that a parent's event asks for; none where no field that somebody shows changed."""
        if (follows := self.parents.get(event.sobject)) is None:
            return []
        if event.overflow or event.wildcard:  # a converted field leaves no stamp
            return self.since(event.sobject, event.second - BUFFER_SECONDS if event.overflow else 0)
        if event.change not in (Change.UPDATE, Change.GAP_UPDATE):
            return []
        told = None if event.gap else event.changed_fields
        changed = follows if told is None else [field for field in follows if any(_touches(name, field) for name in told)]
        return self.requests(event.sobject, changed, [id18(name) for name in event.ids])

    def requests(self, parent: str, changed: Iterable[str], ids: Iterable[str]) -> list[Output]:
        """One for each record and each way to its children."""
        follows = self.parents.get(parent, {})
        children = sorted({child for field in changed for child in follows.get(field, ())})
        return [children_request(self._topic, *child, [id]) for id in dict.fromkeys(ids) for child in children]

    def of_ids(self, parent: str, ids: Iterable[str]) -> list[Output]:
        """Requests for the children of these, whatever changed."""
        return self.requests(parent, self.parents.get(parent, ()), ids)

    def since(self, parent: str, second: int) -> list[Output]:
        """One for each way to children whose parent changed since then (epoch s; 0 or below: for all who have one)."""
        if parent == "User":  # they are polled
            return []
        children = sorted({child for shown in self.parents.get(parent, {}).values() for child in shown})
        return [
            since_request(self._topic, sobject, through, 0 if _polymorphic(through) else max(0, second)) for sobject, through in children
        ]

    def carried(self, config: Salesforce, channel: str) -> list[str]:
        """Parents whose changes this channel tells."""
        return [p for p in self.parents if p != "User" and p not in config.poll and _carries(config, channel, p)]

    def polled(self, config: Salesforce, channels: Sequence[str]) -> list[str]:
        """Parents whose changes must be asked for: users, of whom many orgs tell no changes, and what no channel that is read carries."""
        told = {parent for channel in channels for parent in self.carried(config, channel)}
        return [parent for parent in self.parents if parent not in told]


def children_request(topic: str, sobject: str, through: str, parents: Sequence[str], after: str = "") -> Output:
    """Of the rows whose `through` is one of the parents, those behind the id `after`."""
    value = {"sobject": sobject, "through": through, "parents": list(parents), "after": after}
    return Output(topic, parents[0].encode(), orjson.dumps(value))


def since_request(topic: str, sobject: str, through: str, second: int, after: str = "") -> Output:
    """Of the rows whose parent by `through` changed since an epoch second (0: that have one), those behind the id `after`."""
    value = {"sobject": sobject, "through": through, "since": second, "after": after}
    return Output(topic, f"{sobject}/{through}".encode(), orjson.dumps(value))


def parent_condition(through: str, parents: Sequence[str], second: int) -> str:
    """SOQL of such a request. Everything in it is checked: names, ids."""
    if parents:
        listed = ",".join(f"'{parent}'" for parent in parents)
        return f"{through} IN ({listed})"
    if not second:
        return f"{through} != null"
    return f"{_link(through)}.{changed_since(second)}"


def _link(through: str) -> str:
    return f"{through.removesuffix('__c')}__r" if through.endswith("__c") else through.removesuffix("Id")


def _polymorphic(through: str) -> bool:
    """Salesforce shows no stamp of a parent that may be of several kinds."""
    return len(LEADS_TO.get(_link(through).rpartition(".")[2], ())) > 1


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
