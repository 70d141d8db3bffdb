"""Faults switched on by name: how often each still acts, and what is added to it. Knows no server."""

from dataclasses import dataclass, field
from typing import Any


class UnknownFaultError(ValueError):
    """A fault or a variant of it that this sandbox does not have; the message lists those it has."""


@dataclass(slots=True)
class Armed:
    """A fault that is on. `left` None: until it is cleared."""

    name: str
    left: int | None
    variant: str
    seconds: float
    rate: float = 1.0
    fired: int = 0

    def as_dict(self) -> dict[str, Any]:
        named = {"name": self.name, "times_left": self.left, "variant": self.variant}
        return named | {"seconds": self.seconds, "rate": self.rate, "fired": self.fired}


@dataclass(slots=True)
class Kind:
    """A fault that can be switched on. The first variant is the default; `instant` ones act at once and never stay armed."""

    what: str
    variants: tuple[str, ...] = ("",)
    times: int | None = 1
    seconds: float = 1.0
    most: float = 600.0  # seconds that may be asked for
    rate: float = 1.0  # share of the occasions on which it acts, for those that know rates
    instant: bool = False


@dataclass(slots=True)
class Faults:
    """The switchboard of one sandbox; `kinds` is the closed list of what it can do."""

    kinds: dict[str, Kind]
    armed: dict[str, Armed] = field(default_factory=dict)
    fired: dict[str, int] = field(default_factory=dict)

    def arm(
        self, name: str, times: int | None = None, variant: str | None = None, seconds: float | None = None, rate: float | None = None
    ) -> Armed:
        """Switch on. `times` None takes the fault's own default, 0 means until cleared."""
        kind = self.kinds.get(name)
        if kind is None:
            raise UnknownFaultError(f"no fault named {name!r}; there are: {', '.join(sorted(self.kinds))}")
        variant = variant or kind.variants[0]
        if variant not in kind.variants:
            raise UnknownFaultError(f"fault {name!r} has no variant {variant!r}; it has: {', '.join(kind.variants)}")
        if (times is not None and times < 0) or (seconds is not None and not 0 <= seconds <= kind.most):
            raise UnknownFaultError(f"fault {name!r}: times must be 0 or more, seconds between 0 and {kind.most:g}")
        if rate is not None and not 0 < rate <= 1:
            raise UnknownFaultError(f"fault {name!r}: rate is a share above 0 and up to 1")
        left = kind.times if times is None else (times or None)
        made = Armed(name, left, variant, kind.seconds if seconds is None else seconds, kind.rate if rate is None else rate)
        if not kind.instant:
            self.armed[name] = made
        return made

    def arm_given(self, given: dict[str, Any]) -> Armed:
        """Switch on what a control request asks for: `{"name", "times"?, "variant"?, "seconds"?, "rate"?}`. Errors: ValueError."""
        times = given.get("times")
        if isinstance(times, bool) or not isinstance(times, int | None):
            raise ValueError("times is a whole number")
        seconds, rate = given.get("seconds"), given.get("rate")
        if any(isinstance(n, bool) or not isinstance(n, int | float | None) for n in (seconds, rate)):
            raise ValueError("seconds and rate are numbers")
        variant = given.get("variant")
        return self.arm(str(given.get("name")), times, None if variant is None else str(variant), seconds, rate)

    def peek(self, name: str, *variants: str) -> Armed | None:
        """The fault if it is on (and of one of the variants, where some are given); not used up."""
        found = self.armed.get(name)
        return found if found and (not variants or found.variant in variants) else None

    def take(self, name: str, *variants: str) -> Armed | None:
        """The fault if it is on, used up once."""
        found = self.peek(name, *variants)
        if found is not None:
            self.note(name)
            found.fired += 1
            if found.left is not None:
                found.left -= 1
                if found.left <= 0:
                    del self.armed[name]
        return found

    def note(self, name: str) -> None:
        self.fired[name] = self.fired.get(name, 0) + 1

    def clear(self, name: str | None = None) -> None:
        """Switch one off, or all. Unknown names are refused so that a typo is seen."""
        if name is None:
            self.armed.clear()
        elif name not in self.kinds:
            raise UnknownFaultError(f"no fault named {name!r}; there are: {', '.join(sorted(self.kinds))}")
        else:
            self.armed.pop(name, None)

    def as_list(self) -> list[dict[str, Any]]:
        return [a.as_dict() for a in self.armed.values()]

    def overview(self) -> dict[str, Any]:
        """What is on, what has struck so far, and what there is."""
        known = {n: {"what": k.what, "variants": k.variants, "times": k.times, "seconds": k.seconds} for n, k in self.kinds.items()}
        return {"armed": self.as_list(), "fired": self.fired, "known": known}
