"""Logging in to Salesforce: one token per connection, shared by everybody in the process, asked for no more often than a person would.

A login storm locks a user out, so logins are single-flight and rate-limited here, whoever asks; a token is renewed before it ends, beside
the work; a refused login is said once, and tried again by those who wait. Nothing here writes a secret anywhere but into the vault.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from weakref import WeakKeyDictionary

import structlog

from models.errors import PausedError, SettingsError, TemporaryError
from models.flow import Auth, Flow, Salesforce
from models.scrub import scrub
from models.settings import Settings
from streams import metrics
from streams.salesforce.leases import Leases
from streams.salesforce.limits import Budget, patience
from streams.salesforce.oauth import Token, ask, form_of, refresh_form
from streams.salesforce.slots import Slots
from streams.salesforce.tokens import Vault, need_vault, print_of

log = structlog.get_logger()

BURST, EVERY = 3, 5.0
"""Three logins at once, then one per five seconds."""
AHEAD = 0.8
"""Of its lifetime a token is used alone; in the rest a new one is asked for while it still serves."""
AGAIN = 60.0
"""Seconds until a renewal that failed is tried again, while the token still serves."""
LOCKOUT = 60.0
"""Wrong passwords lock the user out: after a refusal that flow waits so long, whoever asks."""
RETIRING = (
    "logs in by username and password, which Salesforce retires (blocked in newer orgs, announced to end with Winter '27): "
    "use jwt or client_credentials"
)


@dataclass(slots=True)
class _State:
    """What all logins of one connection in one loop share. Times are of the clock."""

    token: Token | None = None
    renew_at: float = 0.0
    ends: float = 0.0
    task: "asyncio.Task[Token] | None" = None
    refused: PausedError | None = None
    refused_at: float = 0.0
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=BURST))
    budget: Budget | None = None
    leases: Leases | None = None
    slots: Slots | None = None


_Key = tuple[str, str, Auth, Path]
_states: "WeakKeyDictionary[asyncio.AbstractEventLoop, dict[_Key, _State]]" = WeakKeyDictionary()


class Login:
    """The login of one connection. `folder` is where `key_file` is relative to; `vault` where its refresh token is kept.

    Any number of them for one connection in one loop are one login: they share token, rate and refusal. Raises SettingsError when the
    flow needs a vault and there is none.
    """

    def __init__(
        self,
        connection: str,
        config: Salesforce,
        folder: str | Path = ".",
        *,
        vault: Vault | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.connection, self._config, self._folder, self._clock = connection, config, Path(folder), clock
        self._vault = need_vault(vault, connection) if config.auth.flow == "web_server" else None
        if config.auth.flow == "password":
            log.warning("retiring login", connection=connection, advice=f"{connection} {RETIRING}")

    @classmethod
    def of(cls, settings: Settings, flow: Flow, connection: str, config: Salesforce) -> "Login":
        """That of a connection of the flow."""
        return cls(connection, config, flow.folder, vault=Vault.of(settings))

    def __repr__(self) -> str:
        return f"Login({self.connection!r}, flow={self._config.auth.flow!r})"

    @property
    def _state(self) -> _State:
        ours = _states.setdefault(asyncio.get_running_loop(), {})
        return ours.setdefault((self.connection, self._config.url, self._config.auth, self._folder), _State())

    @property
    def budget(self) -> Budget:
        """The calls of this connection in this process, whoever makes them."""
        state = self._state
        if state.budget is None:
            state.budget = Budget(self.connection, self._config.api_share, at_once=self._config.at_once)
        return state.budget

    def leases(self, settings: Settings) -> Leases:
        """What this process tells the others of these calls, and hears of theirs."""
        state = self._state
        if state.leases is None:
            state.leases = Leases(settings, self.connection, self.budget)
        return state.leases

    async def close(self) -> None:
        """Give back what was leased; to be called by whoever ends the process's work."""
        state = self._state
        if (leases := state.leases) is not None:
            state.leases = None
            self.budget.leased = None
            await leases.close()

    def slot(self, purpose: str, settings: Settings | None) -> AbstractAsyncContextManager[None]:
        """For one call, with its turn among those of this process; with `settings` the other processes have their part, and their share."""

        async def ready() -> None:
            if settings is not None:
                await self.leases(settings).room()

        state, budget = self._state, self.budget
        if state.slots is None:
            state.slots = Slots(lambda: budget.slots)
        return state.slots.slot(ready, patience(purpose))

    async def token(self) -> Token:
        """The cached token, or a new one. Raises TemporaryError (network, rate limit), PausedError (refused), and while there was none yet
        SettingsError (key file).
        """
        state, now = self._state, self._clock()
        if state.token is not None and now < state.renew_at:
            return state.token
        if state.task is None:
            state.task = asyncio.create_task(self._login(state))
            state.task.add_done_callback(lambda task: task.cancelled() or task.exception())  # nobody may wait for a renewal
        if state.token is not None and now < state.ends:
            return state.token
        return await asyncio.shield(state.task)  # whoever gives up waiting does not end it for the others

    def reject(self, token: Token) -> None:
        """Salesforce said 401 to this token: the next call logs in, unless somebody already did."""
        if self._state.token is token:
            self._state.token = None

    async def _login(self, state: _State) -> Token:
        token: Token | None = None
        try:
            self._admit(state)
            token = await self._asked(state)
        finally:
            state.task, state.renew_at = None, self._clock() + AGAIN
            if token is None and state.token is not None:
                log.warning("no new token yet", connection=self.connection, left=round(state.ends - self._clock()))
        now, lifetime = self._clock(), self._config.auth.lifetime
        state.token, state.renew_at, state.ends = token, now + AHEAD * lifetime, now + lifetime
        log.info("logged in", connection=self.connection, instance=token.instance_url, org=token.org)
        if state.refused is not None:
            state.refused = None
            log.info("access is back", connection=self.connection)
        return token

    async def _asked(self, state: _State) -> Token:
        outcome = "failed"
        try:
            token = await (asyncio.to_thread(self._renew, self._vault) if self._vault else self._ask(self._form()))
            outcome = "ok"
        except (PausedError, SettingsError) as error:
            outcome = "refused"
            if isinstance(error, SettingsError) and not state.ends:
                raise  # at the start a person stands by; later a key file may be away for a moment
            if state.refused is None:
                log.error("login refused", alert=True, connection=self.connection, reason=scrub(str(error)))  # noqa: TRY400 - no fault
            state.refused, state.refused_at = PausedError(str(error)), self._clock()
            raise state.refused from None
        finally:
            metrics.LOGINS.labels(self.connection, outcome).inc()
        return token

    def _admit(self, state: _State) -> None:
        """Raises what was last said while it is too early to ask again."""
        now, recent = self._clock(), state.recent
        if state.refused is not None and self._config.auth.flow == "password" and now < state.refused_at + LOCKOUT:
            raise state.refused
        if len(recent) == BURST and (wait := recent[-1] + EVERY - now) > 0 and now - recent[0] < BURST * EVERY:
            if state.refused is not None:
                raise state.refused
            raise TemporaryError(f"too many logins of {self.connection} in a short time: the next in {wait:.1f} s", retry_after=wait)
        recent.append(now)

    def _form(self) -> dict[str, str]:
        return form_of(self.connection, self._config, self._folder)

    async def _ask(self, form: dict[str, str]) -> Token:
        return await ask(self.connection, self._config, form)

    def _renew(self, vault: Vault) -> Token:
        """With the refresh token, which this may spend. In a thread and a loop of its own: no cancelled task comes between its use and
        the moment its successor is on disk.
        """
        seed = self._config.auth.refresh_token
        mark = print_of(seed.get_secret_value()) if seed else ""
        with vault.held(self.connection) as held:
            kept = held.grant if held.grant is not None and (not seed or held.grant.seed == mark) else None
            if kept is None and seed is None:
                raise PausedError(f"no login of {self.connection} is kept: run `headrace login {self.connection}`")
            spent = kept.refresh_token if kept else seed.get_secret_value() if seed else ""
            held.make_room()
            token = asyncio.run(self._ask(refresh_form(self._config, spent)))
            if token.refresh not in (None, spent):
                held.keep(token.refresh or "", mark)
            elif kept is not None and not held.current:
                held.keep(spent, kept.seed)  # sealed with an older key
        return replace(token, refresh=None)
