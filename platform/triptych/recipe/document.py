"""A YAML file as plain data that still knows its lines.

Scalars follow the core schema of YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema), so `1e-4` is a number and
`on` is text; digits may be grouped (`10_000`). Anchors, aliases and merge keys work; duplicate keys, other tags and
more than one document are refused. Keys are always text.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import yaml

from triptych.recipe.errors import Problem, RecipeError

MAX_CHARACTERS = 4_000_000
"""Largest size of a file with its aliases expanded: a small file of nested aliases can fill the memory."""

FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
)
_RESOLVERS = (
    ("null", re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("int", re.compile(r"[-+]?[0-9][0-9_]*$|0o[0-7]+$|0x[0-9a-fA-F]+$"), list("-+0123456789")),
    ("float", FLOAT, list("-+.0123456789")),
    ("merge", re.compile(r"<<$"), ["<"]),
)
_TAG = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the core schema."""

    yaml_implicit_resolvers: dict[str, Any] = {}
    yaml_constructors: ClassVar[dict[Any, Any]] = {}

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Refuses repeated keys; here, because merging later adds keys that the file does not repeat."""
        node = super().compose_mapping_node(anchor)
        assert isinstance(node, yaml.MappingNode)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be text", key.start_mark)
            if key.value in lines:
                what = f"`{key.value}` is given twice, first in line {lines[key.value]}"
                raise yaml.constructor.ConstructorError(None, None, what, key.start_mark)
            lines[key.value] = key.start_mark.line + 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        self.flatten_mapping(node)
        return {key.value: self.construct_object(value, deep=deep) for key, value in node.value}

    def refuse_tag(self, node: yaml.Node) -> None:
        raise yaml.constructor.ConstructorError(None, None, f"refused tag '{node.tag}'", node.start_mark)

    def construct_core_int(self, node: yaml.ScalarNode) -> int:
        text = node.value.replace("_", "")
        try:
            return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
        except ValueError:
            raise yaml.constructor.ConstructorError(None, None, "a number too long to read", node.start_mark) from None

    def construct_core_float(self, node: yaml.ScalarNode) -> float:
        return float(re.sub(r"\.(?=inf|nan)", "", node.value.lower().replace("_", "")))


for _name, _pattern, _first in _RESOLVERS:
    _Loader.add_implicit_resolver(_TAG + _name, _pattern, _first)
for _name in ("null", "bool", "str", "seq", "map"):
    _Loader.add_constructor(_TAG + _name, getattr(yaml.SafeLoader, f"construct_yaml_{_name}"))
_Loader.add_constructor(None, _Loader.refuse_tag)
_Loader.add_constructor(_TAG + "int", _Loader.construct_core_int)
_Loader.add_constructor(_TAG + "float", _Loader.construct_core_float)


@dataclass(frozen=True)
class Document:
    """One mapping, read from a file."""

    file: str
    data: dict[str, Any]
    root: yaml.Node

    def line(self, path: tuple[str | int, ...]) -> int:
        """Line, from 1, of the key or item at `path`; of its closest ancestor where the file does not have it."""
        node, line = self.root, self.root.start_mark.line + 1
        for step in path:
            if isinstance(node, yaml.MappingNode):
                found = [(key.start_mark, value) for key, value in node.value if key.value == step]
            elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
                found = [(node.value[step].start_mark, node.value[step])]
            else:
                found = []
            if not found:
                return line
            mark, node = found[-1]
            line = mark.line + 1
        return line


def read(path: Path) -> Document:
    """The document of a file. RecipeError: missing, unreadable, not YAML, empty, or not a mapping."""
    file = str(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise RecipeError(Problem(file, None, "", "no such file")) from None
    except UnicodeDecodeError:
        raise RecipeError(Problem(file, None, "", "is not UTF-8 text")) from None
    except OSError as error:
        raise RecipeError(Problem(file, None, "", f"cannot be read: {error.strerror}")) from None
    root, data = parse(text, file)
    if root is None or data is None:
        raise RecipeError(Problem(file, None, "", "is empty; allowed: a mapping of keys to values"))
    if not isinstance(data, dict):
        what = f"the file holds {_KINDS.get(type(data), 'a value')}; allowed: a mapping of keys to values"
        raise RecipeError(Problem(file, root.start_mark.line + 1, "", what))
    return Document(file, data, root)


_KINDS: dict[type, str] = {list: "a list", str: "text", int: "a number", float: "a number", bool: "true or false"}


def parse(text: str, file: str, line: str | None = None) -> tuple[yaml.Node | None, Any]:
    """Node tree and plain data, no part of it shared; `line` stands in for line numbers where the text is no file."""

    def refuse(at: int | None, what: str) -> RecipeError:
        return RecipeError(Problem(file, line or at, "", what))

    loader: Any = None
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        data = None if root is None else loader.construct_document(root)
        return root, json.loads(_written_out(data))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = error.problem or error.context or "is not valid"
        raise refuse(mark.line + 1 if mark else None, f"YAML: {what}") from None
    except yaml.reader.ReaderError as error:
        at = text.count("\n", 0, error.position) + 1
        raise refuse(at, f"YAML: {error.reason}: #x{error.character:04x}") from None
    except RecursionError:
        raise refuse(None, "YAML: nested too deeply") from None
    except _TooLargeError as error:
        raise refuse(None, f"YAML: {error}") from None
    finally:
        if loader is not None:
            loader.dispose()


class _TooLargeError(Exception):
    """The aliases of a document never end, or stand for too much."""


def _written_out(data: Any) -> str:
    parts, size = [], 0
    try:
        for part in json.JSONEncoder().iterencode(data):
            parts.append(part)
            size += len(part)
            if size > MAX_CHARACTERS:
                raise _TooLargeError(f"more than {MAX_CHARACTERS:,} characters once its aliases are written out")
    except ValueError:
        raise _TooLargeError("an alias that contains itself") from None
    return "".join(parts)


class _Dumper(yaml.SafeDumper):
    """Quotes text that either schema, YAML 1.1 or the core schema, would read as something else."""


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    # Unicode's own line breaks survive as escapes only.
    return dumper.represent_scalar(_TAG + "str", text, style='"' if set(text) & set("\x85\u2028\u2029") else None)


_Dumper.add_representer(str, _represent_text)
_Dumper.add_implicit_resolver(_TAG + "float", FLOAT, list("-+.0123456789"))


def write(data: Any) -> str:
    """YAML text that `parse` reads back to equal data."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
