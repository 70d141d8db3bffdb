"""The four things an error can ask for. The class says what to do next; only the guard acts on it.

A message says what happened, to what, and what to do; it never holds a secret or the text of a remote system that was not scrubbed.
"""

from models.learned import Rule


class HeadraceError(Exception):
    """Base of every error of ours; never raised itself."""


class TemporaryError(HeadraceError):
    """Try again here. `retry_after` is in seconds; None leaves the wait to the guard's backoff.

    `whole` is True when the target or connection as a whole is not to be reached (retried for ever), False when it concerns one
    record (N attempts, then a dead letter marked retryable).
    """

    def __init__(self, reason: str, *, retry_after: float | None = None, whole: bool = True) -> None:
        super().__init__(reason)
        self.reason, self.retry_after, self.whole = reason, retry_after, whole


class PermanentError(HeadraceError):
    """This record can never pass as it is: dead letter. `field` names the culprit where it is known, a target's `rule` (models/learned.py)
    what of it.
    """

    def __init__(self, reason: str, *, field: str | None = None, rule: Rule | None = None) -> None:
        super().__init__(reason)
        self.reason, self.field, self.rule = reason, field, rule


class PausedError(HeadraceError):
    """This target or connection stops, alerts, is probed each minute and goes on by itself (revoked key, lost rights)."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class FatalError(HeadraceError):
    """Our own state or Kafka is not as it must be: the process ends before it commits, its parent starts it again."""


class CodeError(FatalError):
    """A fault of our own while records were handled: the process ends, and a chunk that met it three times is taken apart (engine)."""


class SettingsError(HeadraceError):
    """What a person wrote (flow file, settings, command line) cannot be used: say where and how to mend it, and end."""
