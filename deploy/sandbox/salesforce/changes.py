"""Made-up life in the org: creates, updates, emptied fields, deletes, undeletes, merged transactions, moves, conversions.

Runs inside the server, so that a hundred transactions a second cost no HTTP.
"""

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from deploy.sandbox.salesforce.conversion import convert
from deploy.sandbox.salesforce.errors import SalesforceError
from deploy.sandbox.salesforce.org import Org
from deploy.sandbox.salesforce.scenario import People
from deploy.sandbox.salesforce.store import Row, Transaction

_WEIGHTS = {
    "update": 52,
    "create": 18,
    "null": 7,
    "email": 5,
    "move": 5,
    "merged": 4,
    "delete": 4,
    "undelete": 2,
    "convert": 1,
    "several": 2,
}
_ORIGINS = (
    "com/salesforce/api/soap/67.0;client=SfdcInternalAPI/",
    "com/salesforce/api/rest/67.0;client=some-app",
    "com/salesforce/api/rest/67.0",
    "",
)
_KINDS = ("Contact", "Contact", "Contact", "Lead", "Lead", "Account", "Opportunity", "Case", "Task")
_TICK = 0.05


@dataclass(slots=True)
class Changes:
    """One run. `done` counts transactions by what they did; `wanted` is how many there will be.

    `rename_parents` False leaves the names of Accounts alone: such a change makes no event of the records that refer to it.
    """

    org: Org
    rate: float
    wanted: int
    seed: int
    rename_parents: bool = True
    done: Counter[str] = field(default_factory=Counter)
    first: int = 0  # replay id before the first
    finished: bool = False

    async def run(self) -> None:
        """As many transactions as wanted, at the rate; late ones are caught up with."""
        self.first = self.org.bus.last_replay_id
        maker = _Maker(self.org, self.seed, self.rename_parents)
        loop = asyncio.get_running_loop()
        began, made = loop.time(), 0
        while made < self.wanted:
            due = min(self.wanted, int((loop.time() - began) * self.rate) + 1)
            while made < due:
                self.done[maker.one()] += 1
                made += 1
            await asyncio.sleep(_TICK if made < self.wanted else 0)
        self.finished = True

    def as_dict(self) -> dict[str, Any]:
        total = sum(self.done.values())
        return {"rate": self.rate, "wanted": self.wanted, "done": total, "kinds": self.done, "finished": self.finished, "first": self.first}


class _Maker:
    def __init__(self, org: Org, seed: int, rename_parents: bool = True) -> None:
        self.rename_parents = rename_parents
        self.org, self.people = org, People(random.Random(seed))
        self.people.rng.seed(seed)
        self.people._number = 10**6 + seed * 1000
        self.rng = self.people.rng

    def one(self) -> str:
        """One transaction. What it did; a choice that cannot be done just now becomes a create."""
        action = self.rng.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
        kind = self.rng.choice(_KINDS)
        for what in (action, "create"):
            transaction = self.org.begin(self._any("User") if self.rng.random() < 0.8 else None)
            if self.rng.random() < 0.05:
                transaction.unselected()
            try:
                if getattr(self, f"_{what}")(transaction, kind):
                    self.org.commit(transaction, self.rng.choice(_ORIGINS))
                    return what
            except SalesforceError:
                continue  # the record chosen is deleted or locked away; nothing was kept
        return "nothing"

    def _any(self, kind: str, *, deleted: bool = False) -> str | None:
        """A record of that kind by chance, in few tries."""
        table = self.org.store.tables[kind]
        for _ in range(20 if table.order else 0):
            # half of the time a recent one: real changes cluster
            pick = self.rng.choice(table.order[-50:]) if self.rng.random() < 0.5 else self.rng.choice(table.order)
            if table.rows[pick]["IsDeleted"] == deleted:
                return pick
        return None

    def _fresh(self, kind: str) -> Row:
        written = self.people.record(kind)
        return {k: v for k, v in written.items() if v is not None}

    def _create(self, transaction: Transaction, kind: str) -> bool:
        written = self._fresh(kind)
        if kind in ("Contact", "Opportunity", "Case") and (account := self._any("Account")):
            written["AccountId"] = account
        transaction.create(self.org.schema.objects[kind], written)
        return True

    def _update(self, transaction: Transaction, kind: str) -> bool:
        if not (record := self._any(kind)):
            return False
        kept = {"Email"} if self.rename_parents or kind != "Account" else {"Email", "Name"}
        fresh = {k: v for k, v in self._fresh(kind).items() if k not in kept}
        names = self.rng.sample(sorted(fresh), min(len(fresh), self.rng.randrange(1, 4)))
        transaction.update(self.org.schema.objects[kind], record, {n: fresh[n] for n in names})
        return True

    def _null(self, transaction: Transaction, kind: str) -> bool:
        if not (record := self._any(kind)):
            return False
        sobject = self.org.schema.objects[kind]
        row = self.org.store.find(sobject, record) or {}
        full = [
            f
            for f in sobject.fields.values()
            if f.writable and not f.required and row.get(f.name) and f.type not in ("boolean", "reference")
        ]
        if not full:
            return False
        chosen = self.rng.choice(full)
        parts = sobject.compounds.get(chosen.compound or "", [])
        whole = chosen.compound != "Name" and self.rng.random() < 0.5
        emptied = [p.name for p in parts if p.writable] if whole and parts else [chosen.name]
        transaction.update(sobject, record, dict.fromkeys(emptied))
        return True

    def _email(self, transaction: Transaction, _kind: str) -> bool:
        kind = self.rng.choice(("Contact", "Lead"))
        if not (record := self._any(kind)):
            return False
        row = self.org.store.find(self.org.schema.objects[kind], record) or {}
        address = self.people.email(str(row.get("FirstName") or "x"), str(row.get("LastName")))
        transaction.update(self.org.schema.objects[kind], record, {"Email": address})
        return True

    def _move(self, transaction: Transaction, kind: str) -> bool:
        kind = kind if kind != "Task" else "Contact"
        record, owner, account = self._any(kind), self._any("User"), self._any("Account")
        if not record or not owner:
            return False
        move = (
            {"AccountId": account}
            if kind in ("Contact", "Opportunity", "Case") and account and self.rng.random() < 0.6
            else {"OwnerId": owner}
        )
        transaction.update(self.org.schema.objects[kind], record, move)
        return True

    def _merged(self, transaction: Transaction, kind: str) -> bool:
        """The same change to several records: one event for all of them."""
        records = {r for r in (self._any(kind) for _ in range(self.rng.randrange(2, 9))) if r}
        fresh = self._fresh(kind)
        name = next(
            (n for n in ("LeadSource", "Rating", "Status", "Priority", "Description") if n in self.org.schema.objects[kind].fields), None
        )
        if len(records) < 2 or name is None:
            return False
        for record in sorted(records):
            transaction.update(self.org.schema.objects[kind], record, {name: fresh.get(name) or f"set {self.rng.randrange(10**6)}"})
        return True

    def _several(self, transaction: Transaction, _kind: str) -> bool:
        """Unlike changes to records of several objects in one transaction."""
        return all([self._update(transaction, "Account"), self._update(transaction, "Contact"), self._create(transaction, "Opportunity")])

    def _delete(self, transaction: Transaction, kind: str) -> bool:
        kind = kind if kind != "Account" else "Contact"  # an account would leave its contacts behind
        if not (record := self._any(kind)):
            return False
        transaction.delete(self.org.schema.objects[kind], record)
        return True

    def _undelete(self, transaction: Transaction, kind: str) -> bool:
        if not (record := self._any(kind, deleted=True)):
            return False
        transaction.undelete(self.org.schema.objects[kind], record)
        return True

    def _convert(self, transaction: Transaction, _kind: str) -> bool:
        """Lead conversion: Account, Contact, Opportunity made, then the Lead closed, in one transaction."""
        lead_type = self.org.schema.objects["Lead"]
        record = self._any("Lead")
        lead = self.org.store.find(lead_type, record) if record else None
        if lead is None or lead["IsConverted"]:
            return False
        return bool(convert(transaction, lead))
