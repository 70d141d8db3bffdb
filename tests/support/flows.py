"""A flow as the design shows it, with stand-ins for the facts of its targets: for tests of rules, maps and the processing agent."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.maps import Maps, load_maps
from agents.targets.base import Columns
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


class Shapes:
    """Columns of a target and versions of maps, as a writer asks for them; `latest` are those it learns when it catches up."""

    def __init__(self, objects: Mapping[str, Columns], version: int = 0) -> None:
        self.objects, self.number = objects, version
        self.latest: tuple[Mapping[str, Columns], int] | None = None

    def version(self, route: str) -> int:
        return self.number

    def columns(self, target: str) -> Mapping[str, Columns]:
        return self.objects

    async def catch_up(self) -> None:
        if self.latest is not None:
            self.objects, self.number = self.latest


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
