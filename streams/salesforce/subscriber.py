"""The subscriber: all that one process takes in of one Salesforce connection, by the channels it subscribes to and by polling.

It puts together and ends together; what happens on a channel is channel.py's, what is polled polled.py's.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Literal

import structlog

from models.errors import SettingsError
from models.flow import Flow, Salesforce
from models.settings import Settings
from streams.pauses import Pauses
from streams.salesforce.auth import Login
from streams.salesforce.channel import Channel
from streams.salesforce.context import Context, Living, Readiness
from streams.salesforce.polled import Polled
from streams.salesforce.positions import position_key, read_positions
from streams.salesforce.rest import Rest
from streams.salesforce.retry import Backoff, retried
from streams.salesforce.rights import LOOK_SECONDS

log = structlog.get_logger()


async def run_subscriber(
    settings: Settings,
    flow: Flow,
    connection: str,
    fields: Mapping[str, Sequence[str]],
    *,
    start_from: Literal["new", "retained"] | None,
    stop: asyncio.Event,
    health: Readiness | None = None,
    snapshot: bool = True,
    pause_seconds: float = 60.0,
    living: Living | None = None,
    rights_seconds: float = LOOK_SECONDS,
    wanted: Mapping[str, Sequence[str]] | None = None,
    beside: Sequence[Callable[[Rest], Coroutine[None, None, None]]] = (),
) -> None:
    """Subscribe to every channel of a connection until `stop`. `fields`: columns that rows of a source need, by source; `living`: by source
    the ids that we hold to be alive; `rights_seconds`: between two looks at what the user may see; `wanted`: the columns looked for
    then, where they are not `fields`; `beside`: what else this process does with the connection's calls.

    `start_from` is needed only while no position is stored: "new" begins with what happens from now on, "retained" with everything that
    Salesforce still keeps. `snapshot`: at a first start also read every record once. Raises SettingsError (what a person must mend),
    FatalError (another process took over, or Kafka is not as it must be: end, and start again).
    """
    config = flow.connections.get(connection)
    if not isinstance(config, Salesforce):
        known = [name for name, c in flow.connections.items() if isinstance(c, Salesforce)]
        raise SettingsError(f"{connection} is no Salesforce connection of the flow; there are: {', '.join(known) or 'none'}")
    login = Login.of(settings, flow, connection, config)
    rest = Rest(connection, config, login, settings)
    channels = flow.channels(connection)
    if not channels and not config.poll:
        raise SettingsError(f"no route reads from {connection}: name one of its sObjects in a route's `from:`")
    stored = await retried(lambda: read_positions(settings), "positions")
    fresh = [c for c in channels if position_key(connection, c) not in stored]
    if fresh and start_from is None:
        raise SettingsError(
            f"no position is stored for {connection} {', '.join(fresh)}: say `--from new` (what happens from now on) "
            "or `--from retained` (everything Salesforce still keeps, at most 72 h)"
        )
    wait = Backoff(pause=pause_seconds)
    pauses = Pauses(settings)
    await retried(pauses.follow, "pauses")
    rest.held = partial(pauses.why, "connection", connection)
    context = Context(
        settings, flow, connection, config, fields, login, rest, start_from, snapshot, wait, health, living, rights_seconds,
        wanted or fields, rest.held,
    )  # fmt: skip
    tasks = {asyncio.create_task(Channel(context, channel).run(), name=channel) for channel in channels}
    if config.poll:
        tasks.add(asyncio.create_task(Polled(context).run(), name="poll"))
    tasks.add(asyncio.create_task(rest.watch_limits()))
    tasks |= {asyncio.create_task(run(rest)) for run in beside}
    waiting = asyncio.create_task(stop.wait())
    try:
        done, _ = await asyncio.wait({waiting, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        for task in done - {waiting}:
            await task  # none of them ends but by an error
    finally:
        for each in (waiting, *tasks):
            each.cancel()
        await asyncio.wait([waiting, *tasks])
        await rest.close()
        await pauses.stop()
