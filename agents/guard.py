"""The only place that catches broadly: an error becomes a retry, a dead letter, a pause, or the end of the process.

Targets, stages and rules raise; what is to be done is decided here by the error's class (models/errors.py). Nothing that fails is
swallowed: whatever is not understood ends the process before it commits.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import NoReturn, TypeVar, TypeVarTuple

import structlog

from models.errors import CodeError, FatalError, PausedError, PermanentError, SettingsError, TemporaryError
from models.scrub import scrub
from streams import metrics
from streams.engine.stage import Abandoned, Output, Partition, Record
from streams.letters import dead_letter_output
from streams.topics import Topics

log = structlog.get_logger()
T = TypeVar("T")
Ts = TypeVarTuple("Ts")
Sleep = Callable[[float], Awaitable[None]]

ATTEMPTS = 5
PROBE_SECONDS = 60.0
HELD_SECONDS = 1.0
BASE_SECONDS, CAP_SECONDS = 0.5, 60.0
LONGEST_BELIEVED = 900.0
"""A Retry-After above 15 minutes is asked again after 15 minutes."""


def per_record(
    stage: str,
    record: Record,
    rule: Callable[[*Ts], T],
    *args: *Ts,
    topics: Topics,
    redrive_to: str,
    dead: list[Output],
    route: str | None = None,
) -> T | None:
    """Run a pure rule for one record. Whatever it raises, FatalError excepted, becomes a dead letter in `dead`, and None comes back."""
    try:
        return rule(*args)
    except (FatalError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - see the first line of this file
        dead.append(dead_letter_output(stage, record, error, topics=topics, redrive_to=redrive_to, route=route))
        return None


def each_record(
    stage: str, records: Iterable[Record], rule: Callable[[Record], T], *, topics: Topics, redrive_to: str, dead: list[Output]
) -> Iterator[tuple[Record, T | None]]:
    """`per_record` for one rule and many records: each with what the rule gives."""
    for record in records:
        try:
            found = rule(record)
        except (FatalError, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001 - see the first line of this file
            dead.append(dead_letter_output(stage, record, error, topics=topics, redrive_to=redrive_to))
            yield record, None
        else:
            yield record, found


class Guard:
    """Calls somebody outside for one stage and one remote (a target or a connection), and decides what an error of it means.

    stage, target    names, for metrics and logs
    attempts         of one record (TemporaryError with whole=False), then it is given up as retryable
    probe_seconds    between probes of a paused remote
    base, cap        seconds of the backoff: full jitter below min(cap, base * 2^n)
    held             why people do not want it to be called now, "" when it may be: what is in hand waits too
    """

    def __init__(
        self,
        stage: str,
        target: str,
        *,
        attempts: int = ATTEMPTS,
        probe_seconds: float = PROBE_SECONDS,
        base: float = BASE_SECONDS,
        cap: float = CAP_SECONDS,
        sleep: Sleep = asyncio.sleep,
        held: Callable[[], str] = str,
    ) -> None:
        self._held = held
        self.stage, self.target = stage, target
        self.attempts, self.probe_seconds, self.base, self.cap = attempts, probe_seconds, base, cap
        self._sleep = sleep
        self._paused: set[int] = set()

    async def call(
        self, partition: Partition, action: Callable[[], Awaitable[T]], probe: Callable[[], Awaitable[None]], seconds: float
    ) -> T:
        """`await action()` until it answers; one call takes at most `seconds`.

        Raises PermanentError, TemporaryError (one record's attempts used up), FatalError, and Abandoned when the partition is lost.
        """
        tries = 0
        while True:
            self.check(partition)
            while why := self._held():
                await self.wait(partition, HELD_SECONDS, why)
            partition.waiting(f"call to {self.target}", time.monotonic() + seconds + 1)
            try:
                answer = await self._answered(partition, action)
            except (PermanentError, FatalError, SettingsError, Abandoned):
                raise
            except TemporaryError as error:
                tries += 1
                if not error.whole and tries >= self.attempts:
                    raise
                await self._again(partition, error, tries)
            except PausedError as error:
                await self._pause(partition, error, probe)
            except Exception as error:  # noqa: BLE001 - see the first line of this file
                _fatal(self.stage, self.target, error)
            else:
                return answer

    async def _answered(self, partition: Partition, action: Callable[[], Awaitable[T]]) -> T:
        """What the action answers or raises; from then on the partition works again."""
        try:
            return await action()
        finally:
            partition.waiting(f"call to {self.target} over", 0.0)

    def check(self, partition: Partition) -> None:
        """Before every call and every acknowledgement: raises Abandoned when the partition was taken away."""
        if not partition.mine():
            raise Abandoned(f"partition {partition.number} of {self.stage} was taken away; its new owner does the work")

    async def wait(self, partition: Partition, seconds: float, why: str) -> None:
        """Sleep, declared to the watchdog; ends early by Abandoned when the partition is lost."""
        until = time.monotonic() + seconds
        partition.waiting(why, until + 1)
        left = seconds
        while left > 0:
            self.check(partition)
            await self._sleep(min(left, 1.0))
            left -= 1.0
        self.check(partition)

    def backoff(self, tries: int) -> float:
        """Seconds before attempt `tries` + 1: never nothing, at most `cap`."""
        return random.uniform(self.base / 2, min(self.cap, self.base * 2.0 ** min(tries, 20)))

    async def _again(self, partition: Partition, error: TemporaryError, tries: int) -> None:
        own = self.backoff(tries)
        seconds = own if error.retry_after is None else max(min(error.retry_after, LONGEST_BELIEVED), min(own, self.base))
        metrics.RETRIES.labels(self.stage, self.target).inc()
        log.info(
            "retry",
            stage=self.stage,
            target=self.target,
            partition=partition.number,
            tries=tries,
            seconds=round(seconds, 2),
            reason=scrub(error.reason),
        )
        await self.wait(partition, seconds, f"{self.target}: retry after: {error.reason}")

    async def _pause(self, partition: Partition, error: PausedError, probe: Callable[[], Awaitable[None]]) -> None:
        """Stay here until a probe passes: alert once, ask each `probe_seconds`."""
        reason = scrub(error.reason)
        self._paused.add(partition.number)
        metrics.PAUSED.labels(self.target).set(1)
        log.error(
            "target paused", alert=True, target=self.target, partition=partition.number, reason=reason, probe_seconds=self.probe_seconds
        )
        try:
            while True:
                await self.wait(partition, self.probe_seconds, f"{self.target} paused: {reason}")
                try:
                    await probe()
                except (PausedError, TemporaryError) as again:
                    log.info("target still paused", target=self.target, reason=scrub(again.reason))
                except PermanentError:
                    return  # it answers again; what it says of records is the next call's matter
                except (FatalError, SettingsError):
                    raise
                except Exception as unknown:  # noqa: BLE001
                    _fatal(self.stage, self.target, unknown)
                else:
                    return
        finally:
            self._paused.discard(partition.number)
            if not self._paused:
                metrics.PAUSED.labels(self.target).set(0)
                log.info("target resumed", target=self.target, partition=partition.number)


def _fatal(stage: str, target: str, error: Exception) -> NoReturn:
    """What no target may let out: a fault of our own, so the process ends before it commits."""
    raise CodeError(f"{stage}: {target} raised {type(error).__name__}: {scrub(str(error))}; this is a fault in its file") from error


async def split(
    items: Sequence[T], write: Callable[[Sequence[T]], Awaitable[None]], guilty: Callable[[T, PermanentError | TemporaryError], None]
) -> None:
    """Write a batch; when it fails as a whole, halve it until only the guilty items are left, each handed to `guilty` with its error."""
    try:
        await write(items)
    except (PermanentError, TemporaryError) as error:
        if len(items) == 1:
            guilty(items[0], error)
            return
        middle = len(items) // 2
        await split(items[:middle], write, guilty)
        await split(items[middle:], write, guilty)
