"""A source record sent through its in-topic once more, for one route, as news that says nothing: it is emitted as it is known by then.

So no old write is repeated: what failed, or was shaped by an older map, is made anew. Pure.
"""

import time

import orjson

from models.envelope import Envelope, Kind, Reason
from models.flow import Flow, Webhook
from streams.engine.stage import Output
from streams.topics import Topics


def in_topic_source(source: str, flow: Flow) -> tuple[str, str]:
    """Source of the in-topic, and the id in it, of a source record "<connection>/<sObject>/<id>" or "<webhook>/<id>"."""
    connection, _, rest = source.partition("/")
    if isinstance(flow.connections.get(connection), Webhook):
        return connection, rest
    sobject, _, id = rest.partition("/")
    return f"{connection}/{sobject}", id


def anew(record: str, route: str | None, flow: Flow, topics: Topics, *, reason: Reason, run: str, bulk: bool = False) -> Output:
    """The news of a source record ("<connection>/<sObject>/<id>"): a row of nothing but its id; for a hook an empty body older than all."""
    source, id = in_topic_source(record, flow)
    hook = isinstance(flow.connections.get(source), Webhook)
    kind, value = (Kind.HOOK, b"{}") if hook else (Kind.ROW, orjson.dumps({"Id": id}))
    envelope = Envelope(kind=kind, reason=reason, received=int(time.time() * 1000), run=run, route=route)
    return Output(topics.inbound(source, bulk=bulk), id.encode(), value, envelope.headers())
