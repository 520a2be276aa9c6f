"""Class and type names that stand for two things, and files in which two of the things meet."""

import ast
from collections import defaultdict
from collections.abc import Iterator

from counts.source import Count, Module, Offender, Package


def shared_names(package: Package) -> dict[str, dict[str, Offender]]:
    """Name -> the modules that define it -> where; a name with a leading underscore stays in its file."""
    found: dict[str, dict[str, Offender]] = defaultdict(dict)
    for module in package:
        for name, node in _types(module):
            found[name].setdefault(module.name, module.at(node, name))
    return {name: homes for name, homes in sorted(found.items()) if len(homes) > 1}


def shared_name_count(package: Package) -> Count:
    """Names of classes and type aliases that two or more modules define."""
    shared = shared_names(package)
    return Count(
        "names",
        "type names with two meanings",
        len(shared),
        [offender for homes in shared.values() for offender in homes.values()],
        ", ".join(f"{name} {len(homes)}" for name, homes in shared.items()),
    )


def meeting_count(package: Package) -> Count:
    """Files in which a reader meets two of the things that share a name.

    A file meets one where it defines it or imports anything from the module that does: its attributes and annotations
    are of that type, though its name may not stand there.
    """
    found = []
    shared = shared_names(package)
    for module in package:
        all_met = _homes_met(package, module)
        for name, homes in shared.items():
            met = {home: all_met[home] for home in homes if home in all_met}
            if len(met) > 1:
                last = max(met.values(), key=lambda node: getattr(node, "lineno", 0))
                found.append(module.at(last, f"{name} of {' and of '.join(sorted(met))}"))
    names = sorted({offender.text.split()[0] for offender in found})
    return Count(
        "meetings", "files where two of them meet", len(found), sorted(found), f"names: {', '.join(names) or 'none'}"
    )


def _types(module: Module) -> Iterator[tuple[str, ast.AST]]:
    """Public classes and type aliases that a module defines at its top."""
    for node in module.tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield node.name, node
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name[0].isupper() and not name.isupper() and _is_type(node.value):
                yield name, node


def _is_type(value: ast.expr) -> bool:
    """Whether an expression reads as a type: a subscript, a union or another type's name."""
    if isinstance(value, ast.BinOp):
        return isinstance(value.op, ast.BitOr)
    return isinstance(value, ast.Subscript | ast.Name)


def _homes_met(package: Package, module: Module) -> dict[str, ast.AST]:
    """The modules that define what a file defines or imports, and where it does."""
    met: dict[str, ast.AST] = {module.name: module.tree}
    for node in module.nodes(ast.ImportFrom):
        for alias in node.names if node.module else ():
            inner = f"{node.module}.{alias.name}"
            home = inner if inner in package.modules else package.home(str(node.module), alias.name)
            met.setdefault(home, node)
    return met
