"""Where the package asks which kind a stage is, and which files know a kind by name."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from counts.source import Count, Module, Offender, Package

OTHER_KINDS = frozenset({"ppo", "rl", "evaluation"})
"""Kinds that do not learn from rows that are there before: they sample, or only measure."""
STAGE_BASES = frozenset({"StageBase", "_Stage"})
NAMING: tuple[type[ast.AST], ...] = (
    *(ast.Name, ast.Attribute, ast.ClassDef, ast.ImportFrom, ast.AnnAssign),
    *(ast.Dict, ast.Tuple, ast.List, ast.Set, ast.Compare, ast.Match),
)
"""Nodes in which the name of a kind can stand."""
NO_STAGE = frozenset({"Closed", "BaseModel", "Generic", "ABC"})
"""Bases that other models have too."""


@dataclass(frozen=True)
class Kind:
    """A stage kind: its recipe class and the value of its `kind` field."""

    type_name: str
    name: str
    supervised: bool


def kinds_of(package: Package) -> list[Kind]:
    """The recipe's classes with a field `kind: Literal[...]` in the union `Stage` or below the base of all stages."""
    classes = _classes(package)
    found = {name: kind for name, node in classes.items() if (kind := _kind_field(node))}
    staged = [name for name in found if name in _members(package) or STAGE_BASES & _bases(classes, name)]
    return [Kind(name, found[name], found[name] not in OTHER_KINDS) for name in staged]


def kind_check_count(package: Package) -> Count:
    """`isinstance` on recipe classes of stages, comparisons of `kind` with their names, and `match` on either."""
    kinds = kinds_of(package)
    types, names = {kind.type_name for kind in kinds} | _unions(package), {kind.name for kind in kinds}
    found = [offender for module in package for offender in _checks(module, types, names)]
    by_type = sum("isinstance(" in offender.text for offender in found)
    detail = f"{by_type} isinstance, {len(found) - by_type} comparisons"
    return Count("kinds", "checks of a stage's kind", len(found), sorted(found), detail)


def touched_count(package: Package) -> Count:
    """Files that name the recipe class or the kind of the supervised kind that most files name.

    A file counts where the class name stands as a name, in an import or after a dot, or where the kind stands as a
    string of its own. Each of them would have to be read, and most of them edited, for one more kind of that sort.
    """
    kinds = kinds_of(package)
    names = {kind.name for kind in kinds}
    by_kind = {kind.name: _naming(package, kind, names) for kind in kinds if kind.supervised}
    worst = max(by_kind, key=lambda name: len(by_kind[name]))
    detail = ", ".join(f"{name} {len(files)}" for name, files in by_kind.items())
    return Count("touched", "files that know a supervised kind", len(by_kind[worst]), by_kind[worst], detail)


def _recipe(package: Package) -> Iterator[Module]:
    return (module for module in package if module.name.startswith(f"{package.name}.recipe"))


def _kind_field(node: ast.ClassDef) -> str:
    """The value that `kind: Literal["..."]` allows, the first where it allows several."""
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and ast.unparse(statement.target) == "kind":
            values = [item.value for item in ast.walk(statement.annotation) if isinstance(item, ast.Constant)]
            return next((value for value in values if isinstance(value, str)), "")
    return ""


def _classes(package: Package) -> dict[str, ast.ClassDef]:
    """The recipe's classes by name."""
    return {
        node.name: node for module in _recipe(package) for node in module.tree.body if isinstance(node, ast.ClassDef)
    }


def _bases(classes: dict[str, ast.ClassDef], name: str) -> set[str]:
    """Names of all classes that a class inherits from."""
    direct = {ast.unparse(base).partition("[")[0] for base in classes[name].bases} if name in classes else set()
    return direct.union(*(_bases(classes, base) for base in direct))


def _aliases(package: Package) -> dict[str, ast.expr]:
    """Names that the recipe's modules assign."""
    found: dict[str, ast.expr] = {}
    for module in _recipe(package):
        for node in module.tree.body:
            target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
            value = getattr(node, "value", None)
            if isinstance(target, ast.Name) and value is not None:
                found[target.id] = value
    return found


def _members(package: Package) -> set[str]:
    """Names that the union `Stage` reaches."""
    aliases, seen, waiting = _aliases(package), set[str](), ["Stage"]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            value = aliases.get(name)
            waiting += [item.id for item in ast.walk(value) if isinstance(item, ast.Name)] if value else []
    return seen


def _unions(package: Package) -> set[str]:
    """Unions and base classes of stage kinds that `isinstance` can be asked with."""
    reached = _members(package) & _aliases(package).keys()
    classes, kinds = _classes(package), {kind.type_name for kind in kinds_of(package)}
    return reached.union(*(_bases(classes, name) for name in kinds)) - NO_STAGE


def _checks(module: Module, types: set[str], names: set[str]) -> Iterator[Offender]:
    for node in module.nodes(ast.Call, ast.Compare, ast.Match, ast.MatchClass):
        if _asks_type(node, types) or _asks_name(node, names):
            yield module.at(node, ast.unparse(node).splitlines()[0][:100])


def _asks_type(node: ast.AST, types: set[str]) -> bool:
    if isinstance(node, ast.MatchClass):
        return _last(node.cls) in types
    if isinstance(node, ast.Compare):  # type(stage) is ...
        return any(_last(side) in types for side in node.comparators)
    called = isinstance(node, ast.Call) and _last(node.func) in {"isinstance", "issubclass"} and len(node.args) == 2
    return called and any(_last(item) in types for item in ast.walk(node.args[1]))  # type: ignore[attr-defined]


def _asks_name(node: ast.AST, names: set[str]) -> bool:
    """A comparison of something called `kind` with the name of a kind, or of a stage's `kind` with anything."""
    if isinstance(node, ast.Match):
        return _is_kind(node.subject) and bool(names & _strings(node))
    if not isinstance(node, ast.Compare):
        return False
    sides = [node.left, *node.comparators]
    kinds = [side for side in sides if _is_kind(side)]
    of_stage = any(isinstance(side, ast.Attribute) and _last(side.value) == "stage" for side in kinds)
    return of_stage or (bool(kinds) and bool(names & _strings(node)))


def _is_kind(node: ast.AST) -> bool:
    return _last(node) == "kind"


def _strings(node: ast.AST) -> set[str]:
    return {item.value for item in ast.walk(node) if isinstance(item, ast.Constant) and isinstance(item.value, str)}


def _last(node: ast.AST) -> str:
    """The last part of a dotted name."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _naming(package: Package, kind: Kind, names: set[str]) -> list[Offender]:
    """The first line of each file that names a kind."""
    found = []
    for module in package:
        nodes = [node for node in module.nodes(*NAMING) if _names(node, kind, names)]
        if nodes:
            first = min(nodes, key=lambda node: getattr(node, "lineno", 1))
            found.append(module.at(first, f"{len(nodes)} times {kind.type_name} or {kind.name!r}"))
    return found


def _names(node: ast.AST, kind: Kind, names: set[str]) -> bool:
    """Whether a node means a kind; its name is told from other words by what stands around it."""
    if isinstance(node, ast.Name | ast.Attribute):
        return _last(node) == kind.type_name
    if isinstance(node, ast.ClassDef):
        return node.name == kind.type_name
    if isinstance(node, ast.ImportFrom):
        of_stage = {kind.name} if "stages" in (node.module or "").split(".") else set()
        return any(alias.name in {kind.type_name} | of_stage for alias in node.names)
    if isinstance(node, ast.AnnAssign):
        return _last(node.target) == "kind" and kind.name in _strings(node.annotation)
    if isinstance(node, ast.Dict | ast.Tuple | ast.List | ast.Set):
        items = node.keys if isinstance(node, ast.Dict) else node.elts
        held = {item.value for item in items if isinstance(item, ast.Constant)}
        return kind.name in held and len(held & names) > 1
    return _asks_name(node, {kind.name})
