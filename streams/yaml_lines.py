"""YAML as plain data that remembers its lines: a person who made a mistake is told where, for every mistake at once.

Knows YAML and variables, nothing of flows. `${NAME}` stands for an environment variable, in values only; it is put in after parsing, so
what a variable holds can never become structure, and it is masked in `repr` wherever it goes.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from models.errors import SettingsError

MAX_BYTES = 500_000
MAX_VALUES = 50_000
"""Aliases count each time they are used: a few lines of anchors can stand for gigabytes."""
MAX_DEPTH = 30

OPEN, CLOSE = "\ue000\ue000", "\ue001"
"""What `${` and `}` are while YAML reads the text: braces would be structure in {a: ${B}}. As wide as the original, so columns hold."""
VARIABLE = re.compile(r"\$\{([^{}\n]*)\}")
HELD = re.compile(f"{OPEN}([^{CLOSE}]*){CLOSE}")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
TAG = "tag:yaml.org,2002:"

Path_ = tuple[str | int, ...]
"""Place of a value: keys and list positions from the top."""


class Hidden(str):
    """Text that came from a variable, so perhaps a secret: `repr` masks it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'**********'"


@dataclass(frozen=True, slots=True, order=True)
class Mistake:
    """What is wrong in which line (from 1; 0: the file as a whole), and how to mend it."""

    file: str
    line: int
    message: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.file}{f':{self.line}' if self.line else ''}: {self.message}; {self.remedy}"


class FlowError(SettingsError):
    """A file that a person wrote cannot be used; `mistakes` holds all that were found, in order of lines."""

    def __init__(self, mistakes: list[Mistake]) -> None:
        self.mistakes = sorted(set(mistakes))
        super().__init__("\n".join(map(str, self.mistakes)))


@dataclass(slots=True)
class Document:
    """`value` is plain data (None when there is none); `lines` and `texts` say where each value stands and how it was written.

    `bad` are the places of the mistakes, so that what follows from one is not told as another.
    """

    file: str
    value: Any = None
    mistakes: list[Mistake] = field(default_factory=list)
    lines: dict[Path_, int] = field(default_factory=dict)
    texts: dict[Path_, str] = field(default_factory=dict)
    bad: set[Path_] = field(default_factory=set)

    def line(self, path: Path_) -> int:
        """Line of the value, else of the nearest thing around it."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)

    def wrong(self, path: Path_, message: str, remedy: str) -> None:
        """Note a mistake at a place."""
        self.bad.add(path)
        self.mistakes.append(Mistake(self.file, self.line(path), message, remedy))


def did_you_mean(word: object, known: "list[str] | tuple[str, ...] | Mapping[str, Any]", otherwise: str = "") -> str:
    """A remedy: the nearest known word, else all of them, else `otherwise`."""
    names = list(known)
    lower = {name.lower(): name for name in names}
    if close := get_close_matches(str(word).lower(), list(lower), n=1, cutoff=0.6):
        return f"did you mean {lower[close[0]]}?"
    return f"known: {', '.join(names)}" if names else otherwise


def read_yaml(
    path: Path, environ: Mapping[str, str] | None, missing: str = "check its name and folder", *, text: str | None = None
) -> Document:
    """Read a file; never raises for what is in it or for its absence: that is in `mistakes`.

    `environ` None: variables are left as text. `missing` is the remedy where there is no such file. `text`: of the file, read before.
    """
    document = Document(str(path))
    if text is None:
        text = read_text(path, document, missing)
    if text is None:
        return document
    if OPEN[0] in text or CLOSE in text:
        document.wrong((), "holds private-use characters (U+E000, U+E001)", "remove them")
        return document
    try:
        node = YAML(pure=True).compose(VARIABLE.sub(rf"{OPEN}\1{CLOSE}", text))
    except MarkedYAMLError as error:
        document.mistakes.append(_syntax(str(path), error))
    except RecursionError:
        document.wrong((), "is nested too deeply", f"keep it below {MAX_DEPTH} levels")
    except (YAMLError, ValueError) as error:
        document.wrong((), f"is not YAML: {_plain(str(error))}", "write it as UTF-8 text in YAML")
    else:
        reader = _Reader(document, environ)
        if node is not None:
            document.value = reader.read(node, ())
    return document


def read_text(path: Path, document: Document, missing: str = "check its name and folder") -> str | None:
    """A file's text; None where there is a mistake, which `document` notes."""

    def wrong(message: str, remedy: str) -> None:
        document.mistakes.append(Mistake(document.file, 0, message, remedy))

    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        wrong("no such file", missing)
    except IsADirectoryError:
        wrong("is a folder", "name the file inside it")
    except (OSError, ValueError) as error:
        wrong(f"cannot be read: {getattr(error, 'strerror', None) or error}", "check the path and its rights")
    else:
        if len(raw) > MAX_BYTES:
            wrong(f"is larger than {MAX_BYTES:,} bytes", "this is hardly the right file; a large flow is split into several")
            return None
        try:
            return raw.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = raw[: error.start].count(b"\n") + 1
            document.mistakes.append(Mistake(document.file, line, "is not UTF-8 text", "save the file as UTF-8"))
    return None


def _plain(text: str) -> str:
    return HELD.sub(r"${\1}", text).strip().splitlines()[0] if text.strip() else "unreadable"


def _syntax(file: str, error: MarkedYAMLError) -> Mistake:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark is not None else 1
    problem = _plain(error.problem or error.context or "unreadable")
    if "\\t" in problem:
        return Mistake(file, line, "a tab where YAML wants spaces", "indent with spaces")
    if "expected a single document" in (error.context or "") or "document" in problem:
        return Mistake(file, line, "a second document begins here", "keep one document: remove the ---")
    if "undefined alias" in problem:
        return Mistake(file, line, problem, "define the anchor (&name) above its use (*name)")
    return Mistake(file, line, f"is not YAML: {problem}", "check indentation, colons, quotes and brackets here and in the line above")


class _Reader:
    """Nodes to plain data."""

    def __init__(self, document: Document, environ: Mapping[str, str] | None) -> None:
        self.document, self.environ = document, environ
        self.values = 0

    def read(self, node: Node, path: Path_) -> Any:
        """The value; mistakes are noted and read as None."""
        self.document.lines.setdefault(path, node.start_mark.line + 1)
        self.values += 1
        if self.values > MAX_VALUES:
            if self.values == MAX_VALUES + 1:
                self.document.wrong(path, f"stands for more than {MAX_VALUES:,} values", "use fewer aliases (*name)")
            return None
        if len(path) > MAX_DEPTH:
            self.document.wrong(path[:MAX_DEPTH], "is nested too deeply, or an alias holds itself", f"keep it below {MAX_DEPTH} levels")
            self.values = MAX_VALUES + 1
            return None
        if not isinstance(node, ScalarNode) and str(node.tag) not in (f"{TAG}map", f"{TAG}seq"):
            self.document.wrong(path, f"the tag {node.tag} means nothing here", "remove the tag")
            return None
        if isinstance(node, MappingNode):
            return self._mapping(node, path)
        if isinstance(node, SequenceNode):
            return [self.read(item, (*path, index)) for index, item in enumerate(node.value)]
        return self._scalar(node, path)

    def _mapping(self, node: MappingNode, path: Path_) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, ScalarNode) or HELD.search(key.value):
                self.document.mistakes.append(Mistake(self.document.file, line, "a key is not a plain word", "use a plain word as key"))
            elif (name := key.value) in found:
                first = self.document.lines[(*path, name)]
                mistake = Mistake(
                    self.document.file, line, f"{name} stands here a second time (first in line {first})", "remove or rename one of them"
                )
                self.document.mistakes.append(mistake)
            else:
                self.document.lines[(*path, name)] = line
                found[name] = self.read(value, (*path, name))
        return found

    def _scalar(self, node: Node, path: Path_) -> Any:
        text = str(node.value)
        self.document.texts[path] = HELD.sub(r"${\1}", text)
        if HELD.search(text):
            return self._fill(text, path)
        tag = str(node.tag).removeprefix(TAG)
        try:
            match tag:
                case "null":
                    return None
                case "bool":
                    return text.lower() == "true"
                case "int":
                    return int(text.replace("_", ""), 0 if text.lstrip("+-")[:2] in ("0x", "0o", "0b") else 10)
                case "float":
                    return float(text.replace("_", "").replace(".inf", "inf").replace(".nan", "nan"))
                case "str" | "timestamp" | "value":
                    return text
        except ValueError:
            return text
        self.document.wrong(path, f"the tag {node.tag} means nothing here", "remove the tag")
        return None

    def _fill(self, text: str, path: Path_) -> str:
        def value(found: re.Match[str]) -> str:
            name = found[1]
            if self.environ is None:
                pass
            elif not NAME.fullmatch(name):
                self.document.wrong(path, f"${{{name}}} is no name of a variable", "write ${NAME}: letters, digits and _ only")
            elif not self.environ.get(name):
                empty = "empty" if name in self.environ else "not set"
                self.document.wrong(path, f"the environment variable {name} is {empty}", f"export {name}=… before starting")
            else:
                return self.environ[name]
            return f"${{{name}}}"

        return Hidden(HELD.sub(value, text))
