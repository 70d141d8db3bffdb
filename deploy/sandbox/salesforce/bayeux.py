"""The words of Bayeux as Salesforce uses them: replies, error texts, advice. Pure."""

import re
from typing import Any

Message = dict[str, Any]
_VERSION = re.compile(r"(\d+)\.0")
BUSY = (
    "403::To protect all customers from excessive use and Denial of Service attacks, we limit the number of simultaneous connections "
    "per server.  Your request has been denied because this limit has been exceeded.  Please try your request again later."
)


def wrong_version(version: str) -> str | None:
    form = "URI format: '/cometd/66.0'"
    if not (found := _VERSION.fullmatch(version)):
        return f"400::API version in the URI is mandatory. {form}"
    if int(found[1]) < 37:
        return f"400::Unsupported API version. Only API versions '37.0' and later are supported. {form}"
    return None


def same_id(message: Message) -> Message:
    return {"id": message["id"]} if "id" in message else {}


def reply(message: Message) -> Message:
    same = {k: message[k] for k in ("clientId", "channel", "id", "subscription") if k in message}
    return same | {"successful": False}


def error(text: str) -> Message:
    return {"error": text, "successful": False}


def unknown(message: Message, reconnect: str) -> Message:
    advice = {"interval": 0, "reconnect": reconnect}
    return {"error": "403::Unknown client", "successful": False, "advice": advice, "channel": message.get("channel"), **same_id(message)}


def unauthenticated() -> Message:
    return {"error": "401::Authentication invalid", "advice": {"reconnect": "none", "interval": 0}}


def invalid_replay(wanted: Any) -> str:
    """Braces and the two spaces are as recorded."""
    return (
        f"400::The replayId {{{wanted}}} you provided was invalid.  "
        "Please provide a valid ID, -2 to replay all events, or -1 to replay only new events."
    )


def wrong_replay_map(channel: str, replay: Message) -> str:
    shown = ", ".join(f"{k}={v}" for k, v in replay.items())
    return (
        f"400::The replayId for channel {{{channel}}} wasn't found using the provided replay ID map {{{{{shown}}}}}. "
        "Ensure that the channel name you provided in the replay map is valid and matches the channel name used for subscribing."
    )
