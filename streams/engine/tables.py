"""Faust's table manager without Faust's recovery: tables stay declared (so that `faust tables` lists them), the engine owns their state."""

# ruff: noqa: ARG002 - the arguments are Faust's

from typing import Any

from faust.tables.manager import TableManager as Stock
from faust.types import TP


class TableManager(Stock):
    """Set as Faust's `TableManager`. Changelogs are not subscribed in the group; stock recovery is never made or started."""

    async def on_start(self) -> None:
        """Nothing to wait for; no more tables from now on."""
        self._tables_finalized.set()
        self._tables_registered.set()

    async def on_stop(self) -> None:
        """The fetcher stops with us, as in the stock manager."""
        await self.app._fetcher.stop()

    def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """The consumer drains in `wait_empty`."""

    async def on_rebalance(self, assigned: set[TP], revoked: set[TP], newly_assigned: set[TP], generation_id: int = 0) -> None:
        """Start the takeover and return: heartbeats begin only after this call."""
        self._recovery_started.set()
        self.app.engine.begin_takeover(assigned, generation_id)

    async def wait_until_recovery_completed(self) -> bool:
        """True when the app stopped meanwhile."""
        return bool(await self.wait_for_stopped(self.app.engine.ready))

    @property
    def recovery(self) -> Any:
        """Never used."""
        raise NotImplementedError("the engine recovers the tables")
