"""What `headrace status` tells of sources: how each sObject comes in, and what its calls cost. From what processes serve; only reads."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from models.flow import Flow, Salesforce
from streams.salesforce.limits import DAILY_CALLS, DAILY_EVENTS
from streams.scrape import Samples, highest


@dataclass(frozen=True, slots=True)
class WayIn:
    """How an sObject comes in: events, poll, or instead (polled while the event allocation is used up). None: no process says."""

    connection: str
    sobject: str
    by: str | None
    every: float | None
    polled: float | None
    """Seconds since the last round of polling."""


@dataclass(frozen=True, slots=True)
class Calls:
    """The org's API calls of a connection over the rolling day. None: no process says.

    ours      by purpose, made by all processes
    share     fraction used of api_share
    ahead     fraction of the org's limit that will be used in two hours, if it goes on so; left: calls of the org that are left now
    step      0 normal, 1 no optional re-reads, 2 batch, 3 poll, 4 stop
    events    left of the event allocation
    """

    connection: str
    ours: Mapping[str, int]
    share: float | None
    ahead: float | None
    left: int | None
    step: int | None
    events: int | None


def ways_in(flow: Flow, answers: Sequence[Samples]) -> list[WayIn]:
    """Of every sObject that a route reads."""
    polled, last = (highest(answers, f"headrace_{name}") for name in ("source_polled", "last_poll_timestamp_seconds"))
    found = []
    for name, connection in flow.connections.items():
        if not isinstance(connection, Salesforce):
            continue
        for sobject in flow.sobjects(name):
            labels = (("connection", name), ("sobject", sobject))
            how = polled.get(labels)
            by = None if how is None else ("events", "poll", "instead")[int(how)]
            every = {"poll": connection.poll.get(sobject), "instead": connection.poll_instead}.get(by or "")
            at = last.get(labels) if how else None
            found.append(WayIn(name, sobject, by, every, None if at is None else max(0.0, time.time() - at)))
    return found


def calls_of(flow: Flow, used: Mapping[str, Mapping[str, int]], answers: Sequence[Samples]) -> list[Calls]:
    """Of every connection; `used`: calls by connection and purpose."""
    share, ahead, step = (highest(answers, f"headrace_api_{name}") for name in ("share_ratio", "forecast_ratio", "step"))
    least = [{"left": {labels: -value for labels, value in one.get("headrace_limit_remaining", {}).items()}} for one in answers]
    left = {labels: -int(value) for labels, value in highest(least, "left").items()}
    found = []
    for name, connection in flow.connections.items():
        if isinstance(connection, Salesforce):
            of = (("connection", name),)
            stepped = step.get(of)
            found.append(
                Calls(
                    name,
                    dict(used.get(name, {})),
                    share.get(of),
                    ahead.get(of),
                    left.get((*of, ("limit", DAILY_CALLS))),
                    None if stepped is None else int(stepped),
                    left.get((*of, ("limit", DAILY_EVENTS))),
                )
            )
    return found
