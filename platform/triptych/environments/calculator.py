"""A calculator as the policy's tool."""

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from triptych.environments.base import Step

_CALL = re.compile(r"<calc>(.*?)</calc>", re.DOTALL)
_LONGEST = 200
"""Characters of an expression."""
_LARGEST = 1e15
"""Size of a number, and so of what a power may take."""
_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}


@dataclass(frozen=True)
class CalculatorEpisode:
    """The result of the last call of each turn; a turn without one ends the trajectory."""

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "CalculatorEpisode":
        """Whatever the row has: a calculator needs nothing of it."""
        return cls()

    def step(self, text: str) -> Step:
        """The result, or what is wrong with the expression, as a reply."""
        asked = _CALL.findall(text)
        return Step(reply(asked[-1])) if asked else Step()


def reply(expression: str) -> str:
    """The value of an expression as text; `error: ...` where it has none."""
    try:
        return _written(calculated(expression))
    except (ValueError, ArithmeticError, SyntaxError, RecursionError) as error:
        return f"error: {error}"


def calculated(expression: str) -> float:
    """The value of an expression of numbers, `+ - * / // % **` and parentheses.

    Raises:
        ValueError: it has anything else, is too long, or a number in it is too large.
        ArithmeticError, SyntaxError: as Python raises them.
    """
    if len(expression) > _LONGEST:
        raise ValueError(f"the expression has more than {_LONGEST} characters")
    return _value(ast.parse(expression.strip(), mode="eval").body)


def _value(node: ast.expr) -> float:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return _bounded(node.value)
    if isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        return _bounded(_UNARY[type(node.op)](_value(node.operand)))
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Pow) and left and abs(right) * max(1.0, math.log10(abs(left) + 1)) > 300:
            raise ValueError("the power is too large")
        return _bounded(_BINARY[type(node.op)](left, right))
    raise ValueError("only numbers, + - * / // % ** and parentheses can be calculated")


def _bounded(number: Any) -> float:
    if isinstance(number, complex) or not math.isfinite(number) or abs(number) > _LARGEST:
        raise ValueError("a number is too large, or is none")
    found: float = number
    return found


def _written(number: float) -> str:
    return str(int(number)) if number == int(number) else f"{number:.10g}"
