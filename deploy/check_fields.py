"""What `fields: all` of a route will take from the org, and what it will not and why, before it does. Pure."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from agents.maps import TargetFacts, load_maps
from agents.org_fields import followed, left_out
from models.flow import Flow
from streams.map_versions import MapText, MapVersion, OrgFields

NAMED = 20
"""Fields that are named; of more the number is told."""


def foretold(flow: Flow, facts: Mapping[str, TargetFacts], told: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Notes, by route and source. `told`: describes by source; of a source that is not among them nothing is said. Raises MapsError."""
    routes = {name: route for name, route in flow.routes.items() if route.fields}
    versions = {}
    for name, route in routes.items():
        org = {source: followed(route, OrgFields(), told[source], frozenset()) for source in route.sources if source in told}
        versions[name] = MapVersion(name, 1, MapText(route.map, None, "", org))
    lines, maps = load_maps(flow, facts), load_maps(flow, facts, versions)
    notes = []
    for name, route in routes.items():
        for source in route.sources:
            if source not in told:
                continue
            way = maps.route(name).ways[source]
            read = {path for leaf in lines.route(name).ways[source].map.written for path in leaf.sources}
            why = {str(one["name"]): left_out(one, query=route.fetch == "query") for one in told[source].get("fields") or ()}
            why |= way.left_out
            taken = sorted((field for field, reason in why.items() if not reason and field not in read), key=_standard)
            shown = ", ".join(taken[:NAMED]) + (f" and {len(taken) - NAMED} more (`headrace fields {source}`)" if taken[NAMED:] else "")
            number = f"{len(taken)} field{'s' * (len(taken) != 1)}"
            notes.append(f"route {name}: `fields: all` takes {number} of {source} beside the map{': ' if taken else ''}{shown}")
            by_reason = defaultdict(list)
            for field, reason in why.items():
                if reason and field not in read:
                    by_reason[reason].append(field)
            if by_reason:
                out = "; ".join(f"{', '.join(fields)} ({reason})" for reason, fields in by_reason.items())
                notes.append(f"route {name}: left out of {source}: {out}")
    return notes


def _standard(field: str) -> bool:
    """Fields of the org's own come first: they are what one looks for."""
    return not field.endswith("__c")
