"""Whether a subscriber that waits for its turn counts as ready: waiting is what it is for."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from models.settings import Settings
from streams.salesforce import channel as channels
from streams.salesforce import leader
from streams.salesforce.context import Context
from streams.salesforce.retry import Backoff
from tests.support.salesforce import FIELDS, acme, flow_for


class Leadership(leader.Leadership):
    """Leads until told otherwise."""

    def __init__(self, *_: object) -> None:
        self._group = "made up"
        self.mine, self.lost = asyncio.Event(), asyncio.Event()

    async def join(self) -> None:
        """At once."""

    async def leave(self) -> None:
        """At once."""


class Readiness:
    """What was said last."""

    def __init__(self) -> None:
        self.standby = asyncio.Event()

    def ready(self, name: str, ok: bool, why: str = "") -> None:
        if (ok, why) == (True, "standby"):
            self.standby.set()
        else:
            self.standby.clear()


async def test_one_that_lost_its_lead_in_trouble_is_ready_again_while_it_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen after a SIGSTOP: unready for ever, though it stood by."""
    monkeypatch.setattr(channels, "Leadership", Leadership)
    flow, told, begun = flow_for("http://localhost:9"), Readiness(), asyncio.Event()
    settings: Any = Settings(state=tmp_path)
    nothing: Any = None
    context = Context(settings, flow, "acme", acme(flow), FIELDS, nothing, nothing, None, False, Backoff(), told)
    channel = channels.Channel(context, "/data/ChangeEvents")

    async def trouble() -> None:
        channel._say(False, "Kafka is away")
        begun.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(channel, "_lead", trouble)
    leadership: Any = channel._leadership
    task = asyncio.create_task(channel.run())
    async with asyncio.timeout(10):
        leadership.mine.set()
        await begun.wait()
        assert not told.standby.is_set()
        leadership.mine.clear()
        leadership.lost.set()
        await told.standby.wait()
    task.cancel()
    await asyncio.wait([task])
