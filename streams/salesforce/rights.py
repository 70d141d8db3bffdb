"""What the user of a connection may see. What he may not, Salesforce leaves out without a word, so that one has to ask.

Reads only. Who lacks a right is an incident that waits; when the right returns it is opened for repair, after a new subscription stands: an
old one goes on withholding.
"""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from models.errors import PausedError, PermanentError, SettingsError
from models.flow import Salesforce, channel_sobject
from models.settings import Settings
from streams import metrics
from streams.salesforce.columns import types_of
from streams.salesforce.incidents import Incident, read_incidents
from streams.salesforce.messages import BUFFER_SECONDS
from streams.salesforce.rest import DESCRIBED_SECONDS, Rest, Row, check_id, check_name

PURPOSE = "rights"
LOOK_SECONDS = 600.0
UNPROVEN = "the user cannot be shown to see every record, so what is missing may only be hidden: grant View All Data"

Store = Callable[[Sequence[Incident]], Awaitable[None]]


async def views_all_data(rest: Rest, purpose: str) -> tuple[bool, int]:
    """Whether the user has View All Data, and Salesforce's second when it said so. Raises TemporaryError, PausedError."""
    try:
        answer = await rest.query("SELECT PermissionsViewAllData FROM UserPermissionAccess", purpose)
    except PermanentError:
        return False, 0
    return any(row.get("PermissionsViewAllData") is True for row in answer.rows), answer.second


async def sees_all(rest: Rest, sobject: str, purpose: str) -> bool:
    """Whether it is proven that the user sees every record of an sObject. Raises TemporaryError, PausedError."""
    if (await views_all_data(rest, purpose))[0]:
        return True
    try:
        sets = f"SELECT PermissionSetId FROM PermissionSetAssignment WHERE AssigneeId = '{check_id(await rest.user())}'"  # noqa: S608 - checked
        where = f"SobjectType = '{check_name(sobject)}' AND PermissionsViewAllRecords = true AND ParentId IN ({sets})"
        return bool((await rest.query(f"SELECT Id FROM ObjectPermissions WHERE {where}", purpose)).rows)  # noqa: S608 - checked
    except PermanentError:
        return False


async def same_user(rest: Rest, subscriber: str) -> None:
    """Rows read by one who sees other fields than the subscriber's user would empty what only that one sees.

    `subscriber`: id of that user, "" where it is not known. Raises SettingsError.
    """
    user = await rest.user()
    if user and subscriber and user[:15] != subscriber[:15]:
        raise SettingsError(
            f"{rest.connection}: this process logs in as user {user}, the subscriber as {subscriber}, who may see other fields: "
            "set the same login for both"
        )


async def withheld(
    rest: Rest, config: Salesforce, fields: Mapping[str, Sequence[str]], purpose: str = PURPOSE
) -> tuple[dict[str, str], int]:
    """By source what is withheld of it, in words; and Salesforce's second before anything was asked. Raises TemporaryError, PausedError."""
    everything, second = await views_all_data(rest, purpose)
    found: dict[str, str] = {}
    for source, paths in fields.items():
        sobject = source.partition("/")[2]
        channel = config.channel_of(sobject)
        said = []
        if channel_sobject(channel) is None:
            if not everything:
                said.append(f"the user lacks View All Data: {channel} brings no changes of {sobject}, without a word")
        elif not (everything or await sees_all(rest, sobject, purpose)):
            said.append(f"the user lacks View All Records of {sobject}")
        if (hidden := await _hidden(rest, sobject, paths, purpose)) is None:
            said.append(f"the user may not read {sobject}")
        elif hidden:
            said.append(f"the user may not see {', '.join(hidden)} of {sobject}, or there is no such field")
        if said:
            found[source] = "; ".join(said)
    return found, second


async def _hidden(rest: Rest, sobject: str, paths: Sequence[str], purpose: str) -> list[str] | None:
    """Those of an sObject's paths that describe does not hold; None: the user does not see the sObject itself."""
    if await described(rest, sobject, purpose, age=0) is None:
        return None
    return [path for path, kind in (await types_of(sobject, paths, partial(described, rest, purpose=purpose))).items() if kind is None]


async def described(rest: Rest, sobject: str, purpose: str, *, age: float = DESCRIBED_SECONDS) -> Row | None:
    """Describe of an sObject; None: the user does not see it. Raises TemporaryError, PausedError."""
    try:
        return await rest.describe(sobject, purpose, age=age)
    except PermanentError:
        return None
    except PausedError as error:
        if "INSUFFICIENT_ACCESS" not in error.reason:
            raise
        return None


class Rights:
    """The look of the process that leads a channel. `fields`: columns to be seen, by source (of `sources`); `store` keeps incidents.

    back   incidents whose rights returned: to be opened once a new subscription stands
    """

    def __init__(
        self,
        settings: Settings,
        rest: Rest,
        config: Salesforce,
        fields: Mapping[str, Sequence[str]],
        sources: Sequence[str],
        store: Store,
    ) -> None:
        self._settings, self._rest, self._config, self._store = settings, rest, config, store
        self._fields, self._sources = fields, sources
        self.back: list[Incident] = []

    async def look(self, proven: int) -> int:
        """Compare what is withheld with the incidents that say so; Salesforce's second when nothing is, else 0.

        `proven`: the second at which nothing was withheld for the last time. Raises TemporaryError, PausedError, FatalError.
        """
        found, second = await withheld(self._rest, self._config, {source: self._fields[source] for source in self._sources})
        waiting: dict[str, list[Incident]] = {source: [] for source in self._sources}
        for incident in (await read_incidents(self._settings)).values():
            if incident.state == "waiting" and incident.source in waiting:
                waiting[incident.source].append(incident)
        changed, self.back = [], []
        for source, mine in waiting.items():
            metrics.WITHHELD.labels(*source.split("/")).set(source in found)
            told = next((i for i in mine if i.cause == "rights"), None)
            if source not in found:
                self.back += mine
            elif told is None:
                now = int(time.time() * 1000)
                since = max(0, proven - BUFFER_SECONDS)
                name = f"{source}/rights/{now}"
                changed.append(Incident(name, source, "rights", found[source], since=since, state="waiting", opened=now))
            elif told.detail != found[source]:
                changed.append(replace(told, detail=found[source]))
        if changed:
            await self._store(changed)
        return 0 if found else second

    async def reopen(self) -> bool:
        """After a new subscription: what was withheld until now is to be read again. False: nothing was."""
        back, self.back = self.back, []
        if back:
            await self._store([incident.reopened() for incident in back])
        return bool(back)
