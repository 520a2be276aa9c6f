"""The modules of a package, parsed once, and what they import from each other."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

NodeT = TypeVar("NodeT", bound=ast.AST)


@dataclass(frozen=True, order=True)
class Offender:
    """A line that a count counted."""

    file: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}"


@dataclass
class Count:
    """One row of the table."""

    key: str
    """Short name, for JSON and for `--offenders`."""
    name: str
    value: float
    offenders: list[Offender] = field(default_factory=list)
    detail: str = ""
    """How the value is put together, in a few words."""


@dataclass(frozen=True)
class Module:
    """A parsed file of the package."""

    name: str
    path: Path
    file: str
    """Path for people, relative to the checkout."""

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.path.read_text())

    @cached_property
    def _nodes(self) -> dict[type[ast.AST], list[ast.AST]]:
        found: dict[type[ast.AST], list[ast.AST]] = defaultdict(list)
        for node in ast.walk(self.tree):
            found[type(node)].append(node)
        return found

    def nodes(self, *types: type[NodeT]) -> Iterator[NodeT]:
        """The nodes of these types, type by type."""
        for node_type in types:
            yield from self._nodes.get(node_type, [])  # type: ignore[misc]

    @property
    def lines(self) -> int:
        return len(self.path.read_text().splitlines())

    def at(self, node: ast.AST, text: str) -> Offender:
        """The line of a node, with a remark."""
        return Offender(self.file, getattr(node, "lineno", 1), text)


class Package:
    """The modules below one folder, by dotted name."""

    def __init__(self, checkout: Path, name: str = "triptych", within: str = "platform") -> None:
        root = checkout / within
        self.name = name
        self.modules: dict[str, Module] = {}
        for path in sorted((root / name).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            dotted = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            self.modules[dotted] = Module(dotted, path, str(path.relative_to(checkout)))
        if not self.modules:
            raise SystemExit(f"no Python files in {root / name}")

    def __iter__(self) -> Iterator[Module]:
        return iter(self.modules.values())

    def imports(self, module: Module) -> set[str]:
        """Modules of the package that a module imports, inside functions too, but not for type checkers alone."""
        unseen = {node for test in module.nodes(ast.If) if _for_type_checkers(test) for node in ast.walk(test)}
        found: set[str] = set()
        for node in module.nodes(ast.Import, ast.ImportFrom):
            if node not in unseen:
                found.update(_imported(node))
        return found & self.modules.keys()

    def reached(self, entry: str) -> set[str]:
        """The modules that importing and running an entry can load, with the packages that they stand in."""
        seen: set[str] = set()
        waiting = [entry]
        while waiting:
            name = waiting.pop()
            if name in self.modules and name not in seen:
                seen.add(name)
                parts = name.split(".")
                waiting += [".".join(parts[:end]) for end in range(1, len(parts))]
                waiting += self.imports(self.modules[name])
        return seen

    def home(self, module: str, name: str) -> str:
        """The module that defines what `from module import name` gives, through re-exports."""
        for node in self.modules[module].tree.body if module in self.modules else ():
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        return self.home(node.module, alias.name)
        return module


def _for_type_checkers(node: ast.If) -> bool:
    return "TYPE_CHECKING" in ast.unparse(node.test)


def _imported(node: ast.stmt) -> Iterator[str]:
    """Names that may be modules."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield node.module
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
