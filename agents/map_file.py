"""Map files: what a person wrote of a map is read, and told where it is wrong.

A map file is YAML or JSON in the plain form {"Owner.Email": "dataFields.Owner.Email"}: source path to target path. A value may also be
{to: path, transform: name}. Reads one file, asks nobody, knows nothing of routes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.rules.mapping import Leaf, Map, identifier
from agents.rules.transforms import TRANSFORMS
from streams.yaml_lines import Document, did_you_mean, read_yaml

Place = tuple[str, ...]


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """A mistake. `place` is in the flow file ("routes", name, "where"); `file` and `line` are those of a map file, if it is there."""

    place: Place
    message: str
    remedy: str
    file: str | None = None
    line: int = 0

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.file else ".".join(self.place)
        return f"{where}: {self.message}; {self.remedy}"


def read_map(path: Path, place: Place = ()) -> tuple[Map | None, list[Problem]]:
    """Read a map file: the map as far as it is right, and its mistakes."""
    document = read_yaml(path, None)
    leaves: list[Leaf] = []
    value = document.value
    if not document.mistakes and not (isinstance(value, dict) and value):
        document.wrong((), "a map must hold at least one line `source path: target path`", "write for example  Email: email")
    elif isinstance(value, dict):
        for source, target in value.items():
            if (leaf := _leaf(document, source, target)) is not None:
                leaves.append(leaf)
        _overlaps(document, leaves)
    problems = [Problem(place, mistake.message, mistake.remedy, mistake.file, mistake.line) for mistake in document.mistakes]
    return (Map(str(path), tuple(leaves)) if leaves else None), problems


def _leaf(document: Document, source: Any, target: Any) -> Leaf | None:
    transform = None
    options = target if isinstance(target, dict) else {"to": target}
    to = options.get("to")
    for option in options.keys() - {"to", "transform"}:
        document.wrong((source, option), f"unknown option {option}", did_you_mean(option, ("to", "transform")))
    if not isinstance(to, str) or not all(map(_is_step, to.split("."))):
        document.wrong((source,), f"the target of {source} must be a path such as dataFields.Owner.Email", "write names joined by dots")
        return None
    if not isinstance(source, str) or not all(map(_is_step, source.split("."))):
        document.wrong((source,), f"the source {source} must be a path such as Owner.Email", "write names joined by dots")
        return None
    path = tuple(to.split("."))
    if "transform" in options:
        if (named := options["transform"]) not in TRANSFORMS:
            document.wrong((source, "transform"), f"unknown transform {named}", did_you_mean(named, tuple(TRANSFORMS)))
            return None
        transform = TRANSFORMS[named]
    return Leaf(source, path, transform or identifier(path))


def _is_step(step: str) -> bool:
    return step.isidentifier() and step.isascii()


def _overlaps(document: Document, leaves: list[Leaf]) -> None:
    """Two ways to one target path, or one through another: the result would depend on the order of lines."""
    taken: dict[tuple[str, ...], str] = {}
    for leaf in leaves:
        if leaf.target in taken:
            document.wrong((leaf.source,), f"{'.'.join(leaf.target)} is written by {taken[leaf.target]} too", "remove one of the two lines")
        taken[leaf.target] = leaf.source
    for leaf in leaves:
        for end in range(1, len(leaf.target)):
            if leaf.target[:end] in taken:
                above = ".".join(leaf.target[:end])
                document.wrong((leaf.source,), f"{above} is a value (of {taken[leaf.target[:end]]}) and cannot hold fields", "rename one")
