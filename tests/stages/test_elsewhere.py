"""What a worker hears of the routes of others, from their heartbeats on real Kafka."""

import asyncio
from pathlib import Path

from agents.elsewhere import Elsewhere
from streams.engine.stage import Output
from streams.health import Health
from streams.publish import send
from streams.topics import Topics
from tests.stages.test_status import FLOW
from tests.support.broker import settings_for, topics

OTHER = FLOW.model_copy(update={"routes": {"another": FLOW.routes["all"]}})


async def test_the_routes_of_living_workers_are_heard_and_nothing_else_is_taken_for_one(kafka: str, tmp_path: Path) -> None:
    settings = settings_for(kafka, tmp_path)
    names = Topics(settings.installation)
    async with topics(settings, [], [names.processes]):
        elsewhere = Elsewhere(settings)
        hostile = [b"", b"{", b"[]", b"null", b'{"routes": 3}', b'{"routes": [1, null, {}]}', b'{"routes": ["odd"]}', None]
        await send(settings, [Output(names.processes, b"p%d" % n, value) for n, value in enumerate(hostile)])
        assert await elsewhere.routes(0) == {"odd"}
        worker = Health(settings, "worker", flow=FLOW, name="w", beat=0.1)
        receiver = Health(settings, "receive", flow=OTHER, name="r", beat=0.1)
        await worker.start()
        await receiver.start()
        try:
            async with asyncio.timeout(30):
                while "all" not in await elsewhere.routes(0):
                    pass
        finally:
            await worker.stop()
            await receiver.stop()
        assert await elsewhere.routes(3600) == {"odd", "all"}, "what was heard a moment ago is not asked for again"
        assert await elsewhere.routes(0) == {"odd"}, "one that stops says so"
