"""Ways in of a flow file: channels, polls and canaries that do not go together with each other or with the routes."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from models.flow import ALL_CHANGES, EVENTS, Connection, Flow, Route, Salesforce, channel_sobject, is_event, sobject_channel
from streams.yaml_lines import Document, Path_, did_you_mean

CHANNEL = re.compile(r"/data/[A-Za-z][A-Za-z0-9_]*")
EVENT_CHANNEL = re.compile(r"/event/[A-Za-z][A-Za-z0-9_]*__chn")


def check_channels(document: Document, connections: Mapping[str, Any], routes: Mapping[str, Route]) -> None:
    """Every sObject that is read comes by one channel. `connections` as written."""
    for name, raw in connections.items():
        given = raw.get("channels") if isinstance(raw, dict) and raw.get("type") == "salesforce" else None
        if not isinstance(given, list | dict) or not all(isinstance(channel, str) for channel in given):
            continue
        place = ("connections", name, "channels")
        carried: dict[str, list[str]] = {}
        events: dict[str, str] = {}
        for index, channel in enumerate(given):
            at = (*place, index if isinstance(given, list) else channel)
            told = given[channel] if isinstance(given, dict) else None
            names = [one for one in told if isinstance(one, str)] if isinstance(told, list) else []
            if channel.startswith(EVENTS):
                _check_events(document, at, channel, names, events)
            elif not CHANNEL.fullmatch(channel):
                remedy = f"use {ALL_CHANGES}, /data/<sObject>ChangeEvent or /data/<name>__chn"
                document.wrong(at, f"{channel!r} is no channel of changes", remedy)
            elif event := next((one for one in names if is_event(one)), None):
                document.wrong(
                    at, f"{channel} carries changes, and {event} is a platform event", f"name it on a channel {EVENTS}<name>__chn"
                )
            elif channel in carried:
                document.wrong(at, f"channel {channel} is subscribed twice", "remove one")
            else:
                carried[channel] = [sobject] if (sobject := channel_sobject(channel)) else names
                _check_twice(document, at, channel, carried)
        if carried and all(carried.values()):
            polled = raw.get("poll") if isinstance(raw, dict) else None
            names = [*(polled if isinstance(polled, dict) else ()), *(sobject for names in carried.values() for sobject in names)]
            _check_carried(document, name, names, routes)


def check_canaries(document: Document, flow: Flow) -> None:
    """What a canary causes must be heard, and be nobody's record."""
    for name, connection in flow.connections.items():
        if isinstance(connection, Salesforce) and (canary := connection.canary) is not None:
            place, channels = ("connections", name, "canary"), flow.channels(name)
            if flow.routes_from(f"{name}/{canary.sobject}"):
                remedy = "define an event, or an sObject, of its own for the canary"
                document.wrong(place, f"{canary.sobject} is the canary's, and a route reads it", remedy)
            elif canary.record and channels and not any(connection.brings(channel, canary.sobject) for channel in channels):
                message = f"{canary.sobject} is the canary's, and no channel that is subscribed to brings it"
                document.wrong(place, message, "add it to one of `channels:`, or use an event")


def _check_events(document: Document, at: Path_, channel: str, names: Sequence[str], events: dict[str, str]) -> None:
    """A custom channel of platform events; `events`: the channel of each that was named before."""
    if not EVENT_CHANNEL.fullmatch(channel):
        document.wrong(at, f"{channel} is no channel of changes", "remove it: a route that reads a platform event is enough")
    elif not names or not all(is_event(name) for name in names):
        document.wrong(at, f"{channel} must name platform events, and nothing else", f"write {channel}: [Paid__e, Refused__e]")
    elif twice := [name for name in names if name in events]:
        document.wrong(
            at, f"{twice[0]} would come by two channels, {events[twice[0]]} and {channel}", f"take {twice[0]} out of one of the two"
        )
    events |= dict.fromkeys(names, channel)


def check_polls(document: Document, connections: Mapping[str, Connection], routes: Mapping[str, Route]) -> None:
    """What is polled must be read by a route, and must not come a second time by a channel of its own."""
    for name, connection in connections.items():
        if not isinstance(connection, Salesforce):
            continue
        read = [s.partition("/")[2] for route in routes.values() for s in route.sources if s.startswith(f"{name}/")]
        for sobject in connection.poll:
            place = ("connections", name, "poll", sobject)
            if sobject not in read:
                message = f"connection {name} polls {sobject}, which no route reads"
                document.wrong(place, message, did_you_mean(sobject, read, f"write from: {name}/{sobject} in a route, or remove it"))
            elif is_event(sobject):
                document.wrong(place, f"{sobject} is a platform event: nothing of it is kept that could be polled", "remove it")
            elif twice := [c for c, named in connection.channels.items() if sobject in (channel_sobject(c), *named)]:
                document.wrong(
                    place, f"{sobject} would come twice, by polling and by {twice[0]}", f"take it out of {twice[0]}, or remove the poll"
                )


def _check_twice(document: Document, at: Path_, channel: str, carried: Mapping[str, Sequence[str]]) -> None:
    """An sObject on two channels would have two positions, and its changes no order."""
    for other, theirs in carried.items():
        if other == channel:
            continue
        open_ = next((one for one in (channel, other) if not carried[one]), None)
        twice = [sobject for sobject in carried[channel] if sobject in theirs]
        if twice:
            message = f"{twice[0]} would be subscribed on two channels, {other} and {channel}"
            document.wrong(at, message, f"take {twice[0]} out of one of the two")
        elif ALL_CHANGES in (channel, other) and (mine := carried[channel] or theirs):
            one = channel if other == ALL_CHANGES else other
            message = f"{mine[0]} would be subscribed on two channels, {ALL_CHANGES} and {one}"
            document.wrong(at, message, f"remove {one}: the other carries every selected sObject")
        elif open_ and not carried[channel] and not theirs:
            remedy = f"say what is read from each: channels: {{{other}: [Account], {channel}: [Contact]}}"
            document.wrong(at, f"{other} and {channel} both carry several sObjects: some would be subscribed on two channels", remedy)
        else:
            continue
        return


def _check_carried(document: Document, name: str, carried: Sequence[str], routes: Mapping[str, Route]) -> None:
    for route_name, route in routes.items():
        for index, source in enumerate(route.sources):
            owner, _, sobject = source.partition("/")
            if owner == name and sobject and not is_event(sobject) and sobject not in carried:
                message = f"route {route_name}: no channel of {name} carries {sobject}"
                document.wrong(("routes", route_name, "from", index), message, f"add {sobject_channel(sobject)} to its channels")
