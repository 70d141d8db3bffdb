"""What a target refused in a field, as it is stored; what follows from it is said in agents/rules/takes.py. Never a value."""

from typing import Literal

import msgspec

Rule = Literal["length", "picklist", "required", "unique", "type", "value"]
"""What of a field's value a target refuses; "value": it does not say."""
HOLD_MS = 3_600_000
"""So long after its last refusal a target is not told such a value; then one is tried again."""


class Learned(msgspec.Struct, frozen=True):
    """Value of a record in `rejections` (JSON).

    found     class of the value
    least     characters from which on a text is refused; mark: of the only value; source: of the only record; else all of the class are
    version   of the route's map then; schema: print of what the target said of the field
    since, at first and last refusal, epoch ms; times: how many
    """

    route: str
    field: str
    rule: Rule
    found: str
    since: int
    at: int
    least: int = 0
    mark: str = ""
    source: str = ""
    version: int = 0
    schema: str = ""
    times: int = 1

    @property
    def key(self) -> str:
        """Of its record: one for what is refused alike."""
        return "|".join((self.route, self.field, self.rule, self.found, self.mark, self.source))

    @property
    def whole(self) -> bool:
        """Of a whole class, not of single values."""
        return not (self.least or self.mark) and self.found != "null"
