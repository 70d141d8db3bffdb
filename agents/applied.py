"""Which version of each route's map a writer applies: the highest it has met, in a write or in what a key holds.

Before anything of a later version is applied, the process knows that version and the target holds its columns. What a lower one means is
decided in agents/rules/delivery.py.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Mapping
from typing import Protocol

import structlog

from agents.guard import Guard
from agents.maps import InUse
from agents.targets.base import Columns
from models.errors import TemporaryError
from streams.engine.stage import Partition

log = structlog.get_logger()

HOLD_SECONDS = 2.0


class Shapes(Protocol):
    """What a writer must know of maps; see agents/map_versions.py."""

    def version(self, route: str) -> int:
        """Of the route's map that is in use, as far as this process knows."""
        ...

    def columns(self, target: str) -> Mapping[str, Columns]:
        """By object of the target what the maps in use give it."""
        ...

    async def catch_up(self) -> None:
        """Know what is in use by now. Raises TemporaryError, FatalError."""
        ...


class Applied:
    """Of one target in one process. `extend` is called when the columns are others: before the next call the target must hold them."""

    def __init__(self, target: str, routes: Collection[str], maps: Shapes, guard: Guard, extend: Callable[[], None]) -> None:
        self._target, self._maps, self._guard, self._extend = target, maps, guard, extend
        self._versions = {route: maps.version(route) for route in routes}

    def version(self, route: str) -> int:
        """Of a route of the flow."""
        return self._versions[route]

    async def reach(self, met: Collection[tuple[str, int]], partition: Partition) -> None:
        """Apply these (route, version) where they are later; wait until they are known."""
        for route, version in met:
            if version > self._versions.get(route, version):
                await self._known(route, version, partition)
                self._versions[route] = self._maps.version(route)
                self._extend()

    async def _known(self, route: str, version: int, partition: Partition) -> None:
        while self._maps.version(route) < version:
            try:
                await self._maps.catch_up()
            except TemporaryError as error:
                why = f"the versions of maps are not known now: {error.reason}"
            else:
                if (known := self._maps.version(route)) >= version:
                    return
                why = f"{self._target}: the topic knows no version {version} of the map of {route}"
                do = f"if the topic was made anew: headrace map activate {route} --above {version}"
                log.error(
                    "writes wait for a version of a map that is not known", alert=True, route=route, version=version, known=known, do=do
                )
            await self._guard.wait(partition, HOLD_SECONDS, why)


async def caught_up(maps: InUse, partition: Partition) -> None:
    """Know what is in use by now, for a stage that calls nobody: it waits here until Kafka says so."""
    while True:
        partition.waiting("the versions of maps are asked for", time.monotonic() + 60)
        try:
            return await maps.catch_up()
        except TemporaryError as error:
            log.warning("the versions of maps are not known now", reason=error.reason)
            await asyncio.sleep(HOLD_SECONDS)
