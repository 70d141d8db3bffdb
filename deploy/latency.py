"""How long a change takes from its commit in the sandbox Salesforce to its row in PostgreSQL, seen from both ends."""

import contextlib
import statistics
import time
from dataclasses import dataclass, field

import psycopg
from psycopg import sql

from deploy.rig import Rig

TABLES = ("person", "account", "opportunity")


@dataclass
class Latency:
    """Commit in the sandbox Salesforce → row in PostgreSQL, in ms, of each version of each row that was seen there.

    Both clocks are this machine's. A version overwritten between two looks is not seen; a row that a snapshot or a replay wrote tells
    nothing of the way of the event before it. Of each sample `ids` holds the record and `commits` the commit, in epoch ms.
    """

    rig: Rig
    ids: list[str] = field(default_factory=list)
    samples: list[float] = field(default_factory=list)
    commits: list[float] = field(default_factory=list)
    _commits: dict[int, float] = field(default_factory=dict)
    _after: int = 0
    _seen: set[tuple[str, int]] = field(default_factory=set)
    _since: float = 0.0

    def restart(self) -> None:
        """Forget what was before."""
        self._committed()
        self.ids, self.samples, self.commits, self._commits, self._since = [], [], [], {}, time.time()

    def look(self, database: psycopg.Connection) -> None:
        """Take up what was committed and written since the last look."""
        self._committed()
        begun = time.time()
        for table in TABLES:
            with contextlib.suppress(psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
                rows = database.execute(
                    sql.SQL(
                        "SELECT _key, _position, extract(epoch FROM _written_at) * 1000 FROM {} WHERE _written_at > to_timestamp(%s) "
                        "AND _reason IN ('live', 'fetch')"
                    ).format(sql.Identifier("crm", table)),
                    [self._since],
                ).fetchall()
                for key, position, written in rows:
                    if position is not None and (key, position) not in self._seen and (committed := self._commits.get(position)):
                        self._seen.add((key, position))
                        self.ids.append(str(key).rpartition("/")[2])
                        self.samples.append(float(written) - committed)
                        self.commits.append(committed)
        self._since = begun - 2.0

    def _committed(self) -> None:
        answer = self.rig.ask("GET", f"/sandbox/commits?after={self._after}")
        self._after = max([self._after, *(commit[0] for commit in answer["commits"])])
        self._commits |= {commit[0]: commit[1] for commit in answer["commits"]}

    def quantile(self, q: float) -> float | None:
        """In ms; None without samples."""
        return quantile(self.samples, q)


def quantile(samples: list[float], q: float) -> float | None:
    """None for fewer than two samples."""
    return statistics.quantiles(samples, n=1000, method="inclusive")[round(q * 1000) - 1] if len(samples) > 1 else None
