"""The flow file as typed data: connections, targets, routes. Reading it (YAML, line numbers, variables) is streams/flow_file.py's work.

What a target's own options mean is known to its file in agents/targets; here they stay a mapping.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, field_validator, model_validator

from models.write import OnDelete

NAME = r"^[A-Za-z][A-Za-z0-9_-]{0,40}$"
"""Connections, targets and routes: they become parts of topic names and metric labels."""
INTERVAL = re.compile(r"([0-9]{1,6})([smhd])", re.ASCII)


ALL_CHANGES = "/data/ChangeEvents"
EVENTS = "/event/"
"""Channels of platform events begin so."""
ONE_OBJECT = re.compile(r"/data/(.+?)(__)?ChangeEvent")


def is_event(sobject: str) -> bool:
    """Whether it is a platform event: published and heard, never kept, so nothing of it can be read again."""
    return sobject.endswith("__e")


def channel_sobject(channel: str) -> str | None:
    """The sObject of a channel that carries a single one; None for those that carry several."""
    if not (found := ONE_OBJECT.fullmatch(channel)):
        return None
    return f"{found[1]}__c" if found[2] else found[1]


def sobject_channel(sobject: str) -> str:
    """The channel of one sObject: Contact → /data/ContactChangeEvent, Plan__c → /data/Plan__ChangeEvent, Paid__e → /event/Paid__e."""
    if is_event(sobject):
        return f"{EVENTS}{sobject}"
    return f"/data/{sobject[:-1] if sobject.endswith('__c') else sobject}ChangeEvent"


def seconds_of(raw: Any) -> Any:
    """60, "60s", "5m", "1h" in seconds; what is no such text stays as it is."""
    if isinstance(raw, str) and (found := re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)(s|m|h)", raw.strip())):
        return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]]
    return raw


Every = Annotated[float, BeforeValidator(seconds_of), Field(ge=1, le=86_400)]
"""How often, in seconds."""


class Part(BaseModel):
    """Strict and frozen: an unknown key is a mistake, not a wish."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Auth(Part):
    """Login of a Salesforce connection. What each flow needs beside client_id:

    jwt                 username, key_file (PEM); `audience` where it is not the url
    client_credentials  client_secret; works at the org's own address (My Domain) only
    web_server          client_secret where the app wants one; `headrace login` opens `callback` and keeps the refresh token, or it begins
                        with refresh_token
    password            client_secret, username, password (followed by the security token where the org asks for it); Salesforce retires it

    lifetime            seconds a token lives, the session timeout of the org or profile: no reply of Salesforce tells it
    """

    flow: Literal["jwt", "client_credentials", "web_server", "password"]
    client_id: str
    username: str | None = None
    key_file: str | None = None
    client_secret: SecretStr | None = None
    audience: str | None = None
    refresh_token: SecretStr | None = None
    password: SecretStr | None = None
    callback: str = Field(default="http://localhost:1717/OauthRedirect", pattern=r"^http://(localhost|127\.0\.0\.1):[0-9]{2,5}/[\w./-]*$")
    lifetime: float = Field(default=7200.0, ge=60)


DURATION = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)(ms|s|m|h)?")
UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}


def _seconds(given: Any) -> Any:
    """A length of time as people write it."""
    if isinstance(given, str) and (found := DURATION.fullmatch(given.strip())):
        return float(found[1]) * UNITS[found[2]]
    return given


Seconds = Annotated[float, BeforeValidator(_seconds)]


class Canary(Part):
    """What shows that a subscription is not deaf: it must hear of it within `budget` seconds.

    event    a platform event, published when none was heard for `every` seconds; every subscription of the connection hears it
    record   "<sObject>/<id>": a record whose text `field` is changed when the channel that brings the sObject was quiet for `every` seconds
    """

    event: str | None = Field(default=None, pattern=r"^[A-Za-z][A-Za-z0-9_]{0,79}__e$")
    record: str | None = Field(default=None, pattern=r"^[A-Za-z][A-Za-z0-9_]{0,79}/[A-Za-z0-9]{15}([A-Z0-5]{3})?$")
    field: str | None = Field(default=None, pattern=r"^[A-Za-z][A-Za-z0-9_]{0,79}$")
    every: Seconds = Field(default=60.0, ge=1)
    budget: Seconds = Field(default=30.0, ge=1)

    @model_validator(mode="after")
    def _one(self) -> "Canary":
        if (self.event is None) == (self.record is None) or (self.record is None) != (self.field is None):
            raise ValueError("a canary is an event (Canary__e), or a record (Canary__c/a00…) and a text field of it")
        return self

    @property
    def sobject(self) -> str:
        """Of the event, or the record."""
        return self.event or (self.record or "").partition("/")[0]

    @property
    def record_id(self) -> str:
        """Of the record; "" where the canary is an event."""
        return (self.record or "").partition("/")[2]


class Salesforce(Part):
    """A Salesforce org. `url` is its My Domain address, or login.salesforce.com, or test.salesforce.com for a sandbox org; `version` may be
    written with its v.

    channels   of changes: a list, or by channel the sObjects that are read from it, where several channels carry several (empty: all
               that the others do not). The channel of a platform event follows from the route that reads it, unless a custom one names it
    poll       sObjects that are polled, not subscribed to, and the seconds between two rounds (60, "60s", "5m", "1h")
    """

    type: Literal["salesforce"]
    url: str = "https://login.salesforce.com"
    version: str = Field(default="67.0", pattern=r"^v?[0-9]{2,3}\.0$")
    auth: Auth
    channels: dict[str, tuple[str, ...]] = Field(default={ALL_CHANGES: ()}, min_length=1)
    api_share: float = Field(default=0.8, gt=0, le=1, description="fraction of the org's API calls of a day that may be used")
    at_once: int = Field(
        default=25, ge=1, le=1000, description="calls under way at a time, of all processes; an org refuses more long ones"
    )
    canary: Canary | None = None
    page: int = Field(default=2000, ge=10, le=2000, description="rows that one call of REST asks for, by snapshots and polls")
    silence: float = Field(default=300.0, gt=0, description="seconds without any reply of the server before the session is given up")
    poll: dict[str, Every] = Field(default_factory=dict, description="sObjects that are polled, not subscribed to, and how often")
    poll_instead: Every = Field(default=60.0, description="how often the others are polled while the org's event allocation is used up")

    @field_validator("version")
    @classmethod
    def _bare(cls, version: str) -> str:
        return version.removeprefix("v")

    @field_validator("channels", mode="before")
    @classmethod
    def _by_name(cls, channels: Any) -> Any:
        if isinstance(channels, dict):
            return {name: () if carried is None else carried for name, carried in channels.items()}
        return dict.fromkeys(channels, ()) if isinstance(channels, list) and all(isinstance(one, str) for one in channels) else channels

    def channel_of(self, sobject: str) -> str:
        """The channel that brings an sObject: its own, or one that names it, before one of all sObjects."""
        named = [channel for channel, carried in self.channels.items() if sobject in (channel_sobject(channel), *carried)]
        if is_event(sobject):
            return next((channel for channel in named if channel.startswith(EVENTS)), sobject_channel(sobject))
        changes = [channel for channel in self.channels if not channel.startswith(EVENTS)]
        several = [channel for channel in changes if not self.channels[channel] and channel_sobject(channel) is None]
        return [*named, *several, *changes, ALL_CHANGES][0]

    def brings(self, channel: str, sobject: str) -> bool:
        """Whether changes of an sObject that no route reads come by a channel, as far as the flow says."""
        only = channel_sobject(channel)
        carried = (only,) if only else self.channels.get(channel, ())
        return not channel.startswith(EVENTS) and (not carried or sobject in carried)


class Webhook(Part):
    """A source that posts to /hooks/<name>. `key` is the dotted path of the record's id in the body; absent in a body → its delivery id."""

    type: Literal["webhook"]
    signature: Literal["standard", "github"] = "standard"
    secrets: tuple[SecretStr, ...] = Field(min_length=1, description="any of them may have signed: rotation")
    key: str | None = None
    tolerance: float = Field(default=300.0, gt=0, description="seconds a signed timestamp may be off (standard)")
    max_bytes: int = Field(default=1_000_000, gt=0)


Connection = Salesforce | Webhook


class Target(BaseModel):
    """Where writes go: the type names a file in agents/targets, everything else are that file's options."""

    model_config = ConfigDict(frozen=True, extra="allow")

    type: str

    @property
    def options(self) -> dict[str, Any]:
        """What the target's own file reads."""
        return dict(self.model_extra or {})


class Gates(Part):
    """What a route may do within an hour before it is paused and a person is asked; what is not said is not looked at.

    delete   records that leave the target
    null     records in which one and the same field becomes empty
    spike    times the records of the busiest hour of the day before
    """

    delete: int | None = Field(default=None, ge=1)
    null: int | None = Field(default=None, ge=1)
    spike: float | None = Field(default=None, gt=1)


class Route(Part):
    """One way from sources to a target.

    sources    "<connection>/<sObject>", or "<source>" of a webhook; their order decides between several sources of one target key
    quality    stages; `target`: what the target says that it takes, and what it refused
    unique     field of the mapped body that one record may have: of several with the same value the stage `duplicates` lets one stand;
               default: the mail address of persons
    map        a built-in map's name, or a path of a map file, relative to the flow file
    fields     "all": every other field that the org shows of the sources goes to the target too, under its own name
    fetch      event: emit what was merged; query: a change event asks for the row with its relationship fields
    where      filter on the merged record (SOQL's comparison syntax); leaving it is a delete
    key        field of the mapped body, or template, that is the target key across connections; default: connection and record id
    object     the target's own word for the kind of record (table, "users"); default: the map's entity
    verify     seconds (90s, 15m, 24h, 7d in the file) after which the route is verified again; None: only by `headrace verify`
    """

    sources: tuple[str, ...] = Field(alias="from", min_length=1)
    to: str
    map: str
    fields: Literal["all"] | None = None
    quality: tuple[Literal["required", "duplicates", "types", "target"], ...] = ("required",)
    unique: str | None = Field(default=None, min_length=1, max_length=100)
    fetch: Literal["event", "query"] = "event"
    where: str | None = None
    on_delete: OnDelete = "tombstone"
    key: str | None = None
    object: str | None = None
    verify: float | None = Field(default=None, ge=60)
    gates: Gates | None = None

    @field_validator("verify", mode="before")
    @classmethod
    def _seconds(cls, given: Any) -> Any:
        if not isinstance(given, str):
            return given
        if (found := INTERVAL.fullmatch(given.strip())) is None:
            raise ValueError("this is no length of time: write 15m, 24h or 7d")
        return int(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86_400}[found[2]]


class Flow(Part):
    """The whole file; names are the keys."""

    connections: dict[str, Connection]
    targets: dict[str, Target]
    routes: dict[str, Route]
    folder: str = "."

    def read_from(self, connection: str) -> tuple[str, ...]:
        """sObjects and platform events that routes read from this connection, in order of first mention."""
        found = [s.split("/", 1)[1] for r in self.routes.values() for s in r.sources if s.startswith(f"{connection}/")]
        return tuple(dict.fromkeys(found))

    def sobjects(self, connection: str) -> tuple[str, ...]:
        """Those of them that keep records, which can be read again."""
        return tuple(name for name in self.read_from(connection) if not is_event(name))

    def channels(self, connection: str) -> tuple[str, ...]:
        """Channels of a connection that bring what routes read and nobody polls; none for what is no Salesforce connection."""
        config = self.connections.get(connection)
        if not isinstance(config, Salesforce):
            return ()
        return tuple(dict.fromkeys(config.channel_of(name) for name in self.read_from(connection) if name not in config.poll))

    def routes_from(self, source: str) -> dict[str, Route]:
        """Routes that read this source."""
        return {name: route for name, route in self.routes.items() if source in route.sources}
