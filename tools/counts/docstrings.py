"""Docstrings whose first sentence does not stand alone: it begins with a preposition or a relative word."""

import ast
from collections.abc import Iterator

from counts.source import Count, Module, Package

PREPOSITIONS = """
about above across after against along among around as at because before behind below beneath beside besides between
beyond but by despite down during except for from if in inside into like of off on once onto out outside over per since
so than through till to toward towards under until up upon via while with within without
"""
RELATIVE = """
how such that what whatever when whenever where whereas wherever whether which whichever who whom whose why
"""
FIRST_WORDS = frozenset((PREPOSITIONS + RELATIVE).split())


def docstring_count(package: Package) -> Count:
    """The share, in percent, of docstrings of modules, classes, functions and assigned names that begin so."""
    total, bad = 0, []
    for module in package:
        for node, text in _docstrings(module):
            total += 1
            if first_word(text) in FIRST_WORDS:
                bad.append(module.at(node, text.strip().splitlines()[0]))
    share = 100 * len(bad) / total
    return Count(
        "docstrings", "docstrings that do not stand alone, %", round(share, 1), sorted(bad), f"{len(bad)} of {total}"
    )


def first_word(text: str) -> str:
    """The first word in lower case, without punctuation; empty where the text opens with code or an equation."""
    words = text.split()
    return words[0].strip(".,:;*()").lower() if words else ""


def _docstrings(module: Module) -> Iterator[tuple[ast.AST, str]]:
    blocks = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef, ast.If, ast.Try, ast.With)
    for node in module.nodes(*blocks):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        for before, statement in zip([None, *body], body, strict=False):
            follows = isinstance(before, ast.Assign | ast.AnnAssign) or (before is None and documented)
            if follows and isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                text = statement.value.value
                if isinstance(text, str) and text.strip():
                    yield statement, text
