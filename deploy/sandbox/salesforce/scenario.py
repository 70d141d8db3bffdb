"""The seeded beginning of the org: invented users, companies and people. Every address ends in example.org or example.com.

Rows are put into the store directly: they are older than the stream, as in a real org.
"""

import random
import unicodedata
from typing import Any

from deploy.sandbox.salesforce import values
from deploy.sandbox.salesforce.org import USERNAME, Org
from deploy.sandbox.salesforce.schema import SObject

_FIRST = ["Arvel", "Brisa", "Corwen", "Delphi", "Edric", "Fenna", "Garrow", "Hesper", "Ilvar", "Jorun", "Kestrel", "Lunet", "Maro"]
_FIRST += ["Nerys", "Orrin", "Petra", "Quill", "Rosvita", "Sorrel", "Tamsin"]
_FIRST += ["Ülla", "Zoë", "Aurèle", "Søren", "Łucja", "Íris"]
_LAST = [
    "Ashgrove",
    "Bellweather",
    "Corvane",
    "Dunmarsh",
    "Elmstead",
    "Fairholt",
    "Grimwater",
    "Hollinger",
    "Inkwell",
    "Jessamy",
    "Kilnsea",
    "Larkmoor",
]
_LAST += ["Mistlethwaite", "Northolm", "O'Farrow", "Pennifold", "Quarterman", "Ravensby", "Sallowfield", "Thornquist", "d'Été", "Wexcombe"]
_COMPANY_A = ["Amber", "Birch", "Cobalt", "Drift", "Ember", "Fathom", "Gale", "Harbor", "Iris", "Juniper", "Kelp", "Lumen", "Mica"]
_COMPANY_A += ["Nimbus", "Onyx", "Pebble", "Quartz", "Russet", "Slate", "Tidal"]
_COMPANY_B = [
    "Works",
    "Foundry",
    "& Sons",
    "Logistics",
    "Instruments",
    "Bakery",
    "Paper Mill",
    "Optics",
    "Gardens",
    "Freight",
    "Labs",
    "Shipyard",
]
_CITIES = (
    ("Lyon", "Rhône", "69001", "France"),
    ("Springfield", "IL", "62701", "United States"),
    ("Köln", "NW", "50667", "Germany"),
    ("Leeds", "West Yorkshire", "LS1 4AP", "United Kingdom"),
    ("Gdańsk", "Pomerania", "80-001", "Poland"),
)
_INDUSTRY = ("Agriculture", "Banking", "Biotechnology", "Education", "Energy", "Shipping", None)
_SOURCE = ("Web", "Phone Inquiry", "Partner Referral", "Purchased List", "Other", None)
_SHARES = {"Account": 0.15, "Lead": 0.2, "Opportunity": 0.12, "Task": 0.04, "Case": 0.04}  # the rest are contacts
_STREETS = ("Mill Lane", "Quay Street", "Rue d'Été\r\nBât. B", "Lindenweg", "Orchard Road")


class People:
    """Values for records, from one random source: the same seed gives the same org."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self._number = 0

    def email(self, first: str, last: str) -> str:
        self._number += 1
        name = unicodedata.normalize("NFKD", f"{first}.{last}".lower().replace("ł", "l").replace("ø", "o"))
        plain = "".join(c for c in name if c.isascii() and (c.isalnum() or c == "."))
        return f"{plain}.{self._number}@{self.rng.choice(('example.org', 'example.com'))}"

    def phone(self) -> str:
        return f"+1 555 01{self.rng.randrange(100):02d} {self.rng.randrange(1000, 9999)}"

    def address(self, stem: str) -> dict[str, Any]:
        city, state, code, country = self.rng.choice(_CITIES)
        street = f"{self.rng.randrange(1, 300)} {self.rng.choice(_STREETS)}"
        return {f"{stem}Street": street, f"{stem}City": city, f"{stem}State": state, f"{stem}PostalCode": code, f"{stem}Country": country}

    def date(self) -> str:
        return f"2026-{self.rng.randrange(1, 13):02d}-{self.rng.randrange(1, 29):02d}"

    def record(self, kind: str) -> dict[str, Any]:
        """Written fields of a new record of that kind, references left out."""
        rng = self.rng
        first, last = rng.choice(_FIRST), rng.choice(_LAST)
        company = f"{rng.choice(_COMPANY_A)} {rng.choice(_COMPANY_B)}"
        person = {
            "FirstName": first,
            "LastName": last,
            "Email": self.email(first, last) if rng.random() < 0.95 else None,
            "Phone": self.phone(),
        }
        match kind:
            case "Account":
                site = f"https://www.example.com/{rng.randrange(9999)}"
                made = {
                    "Name": company,
                    "Industry": rng.choice(_INDUSTRY),
                    "Website": site,
                    "Phone": self.phone(),
                    "Rating": rng.choice(("Hot", "Cold", None)),
                }
                size = {
                    "NumberOfEmployees": rng.randrange(1, 9000),
                    "AnnualRevenue": rng.choice((None, float(rng.randrange(10**4, 10**8)))),
                }
                return made | size | self.address("Billing") | (self.address("Shipping") if rng.random() < 0.4 else {})
            case "Contact":
                extra = {
                    "Title": rng.choice(("Buyer", "Head of Data", "Engineer", None)),
                    "LeadSource": rng.choice(_SOURCE),
                    "Department": rng.choice(("Ops", None)),
                }
                return (
                    person
                    | extra
                    | {"Salutation": rng.choice(("Ms.", "Mr.", "Dr.", None))}
                    | (self.address("Mailing") if rng.random() < 0.7 else {})
                )
            case "Lead":
                state = {"Company": company, "Status": rng.choice(("Open", "Working", "Nurturing")), "LeadSource": rng.choice(_SOURCE)}
                return person | state | (self.address("") if rng.random() < 0.5 else {})
            case "Opportunity":
                amount = rng.choice((None, float(rng.randrange(500, 90_000)), round(rng.uniform(500, 90_000), 2)))
                return {
                    "Name": f"{company} {rng.randrange(1000)}",
                    "StageName": rng.choice(list(values.STAGES)),
                    "CloseDate": self.date(),
                    "Amount": amount,
                }
            case "Case":
                return {
                    "Subject": f"Question about {company}",
                    "Origin": rng.choice(("Web", "Phone")),
                    "Priority": rng.choice(("High", "Low")),
                }
            case "Task":
                return {
                    "Subject": rng.choice(("Call", "Send letter", "Email")),
                    "ActivityDate": self.date(),
                    "Priority": rng.choice(("High", "Normal")),
                }
        return {"Name": company}

    def user(self, number: int) -> dict[str, Any]:
        first, last = self.rng.choice(_FIRST), self.rng.choice(_LAST)
        names = {"FirstName": first, "LastName": last, "Email": self.email(first, last), "Alias": f"u{number}", "IsActive": True}
        return names | {"Username": f"user{number}@example.org", "UserType": "Standard"}


def seed(org: Org, records: int, seed: int) -> None:
    """Fill the org: twelve users and `records` others over all objects, their dates spread over the two years before now."""
    people = People(random.Random(seed))
    rng, store, objects = people.rng, org.store, org.schema.objects
    users: list[str] = []
    for number in range(12):
        written = people.user(number)
        if number == 0:
            written |= {"FirstName": None, "LastName": "Integration", "Username": USERNAME, "Email": USERNAME, "Alias": "integ"}
        row = _row(org, objects["User"], written, people, number)
        row["CreatedById"] = row["LastModifiedById"] = (users or [row["Id"]])[0]
        store.put(objects["User"], row)
        users.append(row["Id"])
    org.user_id = users[0]
    counts = {kind: int(records * share) for kind, share in _SHARES.items()}
    accounts: list[str] = []
    contacts: list[str] = []
    for kind, count in (("Account", counts["Account"]), ("Contact", records - sum(counts.values())), *list(counts.items())[1:]):
        for number in range(count):
            written = people.record(kind) | {"OwnerId": rng.choice(users[1:])}
            if kind in ("Contact", "Opportunity", "Case") and accounts and rng.random() < 0.9:
                written["AccountId"] = rng.choice(accounts)
            if kind == "Task" and contacts:
                written["WhoId"] = rng.choice(contacts)
            row = _row(org, objects[kind], written, people, number)
            row["CreatedById"] = row["LastModifiedById"] = rng.choice(users)
            store.put(objects[kind], row)
            (accounts if kind == "Account" else contacts if kind == "Contact" else []).append(row["Id"])


def fill(org: Org, sobject: SObject, count: int, seed: int) -> list[str]:
    """Add records of one object as if they had always been there: no events. Their ids."""
    people = People(random.Random(seed))
    people._number = len(org.store.tables[sobject.name].rows) * 10
    users = [u["Id"] for u in org.store.live(org.schema.objects["User"])]
    made = []
    for number in range(count):
        row = _row(org, sobject, people.record(sobject.name) | {"OwnerId": people.rng.choice(users)}, people, number)
        row["CreatedById"] = row["LastModifiedById"] = people.rng.choice(users)
        org.store.put(sobject, row)
        made.append(row["Id"])
    return made


def add_user(org: Org, username: str) -> str:
    """The id of the user of that name, made where there is none."""
    sobject = org.schema.objects["User"]
    for row in org.store.live(sobject):
        if row["Username"] == username:
            return str(row["Id"])
    people = People(random.Random(len(org.store.tables["User"].rows)))
    written = people.user(0) | {"Username": username, "Email": username}
    row = _row(org, sobject, written, people, 0)
    org.store.put(sobject, row)
    return str(row["Id"])


def _row(org: Org, sobject: SObject, written: dict[str, Any], people: People, number: int) -> dict[str, Any]:
    modified = org.now() - people.rng.uniform(3600, 2 * 365 * 86400)
    row = {name: f.default for name, f in sobject.fields.items()} | written
    row |= {"Id": org.store.new_id(sobject), "IsDeleted": False}
    row["CreatedDate"] = values.iso(modified - people.rng.uniform(0, 10**7))
    row["LastModifiedDate"] = row["SystemModstamp"] = values.iso(modified)
    if "CaseNumber" in row:
        row["CaseNumber"] = f"{number + 1001:08d}"
    values.derive(sobject, row, written)
    return row
