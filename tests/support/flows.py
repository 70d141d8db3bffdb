"""A flow as the design shows it, with stand-ins for the facts of its targets: for tests of rules, maps and the processing agent."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.maps import Maps, load_maps
from models.flow import Flow

DATA = Path(__file__).parent.parent / "data"


@dataclass(frozen=True)
class Facts:
    """What maps know of a target."""

    renames: bool = False
    key_field: str | None = None
    default_object: str | None = None

    @staticmethod
    def refusal(name: str) -> str | None:
        """Any name will do."""
        return None

    def same_key(self, object: str, key: str) -> str:
        return key.strip().lower() if self.key_field == "email" else key


TARGETS = {"warehouse": Facts(), "marketing": Facts(renames=True, key_field="email", default_object="users")}
AUTH = {"flow": "client_credentials", "client_id": "x", "client_secret": "y"}


def flow(**routes: dict[str, Any]) -> Flow:
    """A flow with these routes, from connection acme and webhook shop to warehouse and marketing."""
    return Flow.model_validate(
        {
            "connections": {"acme": {"type": "salesforce", "auth": AUTH}, "shop": {"type": "webhook", "secrets": ["s"], "key": "order.id"}},
            "targets": {"warehouse": {"type": "postgres"}, "marketing": {"type": "iterable"}},
            "routes": routes,
            "folder": str(DATA),
        }
    )


CONTACTS = {"from": ["acme/Contact"], "to": "warehouse", "map": "person"}
PEOPLE = {
    "from": ["acme/Contact", "acme/Lead"],
    "to": "marketing",
    "map": "maps/iterable-user.yaml",
    "fetch": "query",
    "where": "Email != null",
}


def maps(**routes: dict[str, Any]) -> Maps:
    """Maps of such a flow."""
    return load_maps(flow(**routes), TARGETS)
