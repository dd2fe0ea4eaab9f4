"""Bounds the cost of τ²'s `calculate`, which evaluates powers of any size while it holds the interpreter's lock.

Invariant: an expression that passes `check_cost` is evaluated within some 25 ms. One that is refused would take longer.
The check evaluates the expression step by step, and looks at the size of the operands before each operation. It does
nothing that `eval` would not do.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Iterator
from typing import Any

_MOST_WORK = 2.5e7
"""Most work of one expression: operations on the 30-bit digits of Python's integers. About 25 ms."""

_DEEP = 500
"""With more operators than this, an expression may be nested too deep for Python."""

_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: operator.pow,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}


def check_cost(expression: str) -> None:
    """Check that the expression is cheap enough. One that cannot be evaluated at all passes: `eval` says why.

    Raises:
        ValueError: it costs too much.
        RecursionError: it is nested too deeply.
    """
    try:
        tree = ast.parse(expression.lstrip(" "), mode="eval")
    except RecursionError:  # `eval` may reach one level deeper, so it must not decide
        raise RecursionError("maximum recursion depth exceeded during compilation") from None
    except (SyntaxError, ValueError, MemoryError):
        return
    values: list[Any] = []
    work = 0.0
    for node in _in_order_of_evaluation(tree.body):
        if isinstance(node, ast.Constant):
            values.append(node.value)
        elif isinstance(node, ast.Tuple):
            values.append(())  # without commas it can only be empty
        elif isinstance(node, ast.BinOp | ast.UnaryOp):
            operands = [values.pop() for _ in range(2 if isinstance(node, ast.BinOp) else 1)][::-1]
            work += _work(node.op, operands)
            if work > _MOST_WORK:
                raise ValueError("Expression is too large to evaluate")
            try:
                values.append(_OPERATORS[type(node.op)](*operands))
            except (ArithmeticError, TypeError, ValueError, MemoryError):
                return
        else:
            return  # a number is called like a function: `eval` raises


def is_deep(expression: str) -> bool:
    """Whether the depth of the caller's stack may decide if Python can evaluate the expression."""
    return sum(map(expression.count, "+-*/(")) > _DEEP


def _in_order_of_evaluation(tree: ast.expr) -> Iterator[ast.expr]:
    """Each expression, after its operands. Not recursive, because the tree may be deeper than the stack allows."""
    found: list[ast.expr] = []
    todo: list[ast.expr] = [tree]
    while todo:
        node = todo.pop()
        found.append(node)
        todo.extend(child for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr))
    return reversed(found)


def _work(operation: ast.AST, operands: list[Any]) -> float:
    if len(operands) < 2 or not all(isinstance(operand, int) for operand in operands):
        return 1.0
    left, right = operands
    m, n = left.bit_length() / 30 + 1, right.bit_length() / 30 + 1
    if isinstance(operation, ast.Pow):
        if right < 0:
            return m + n  # the result is a float
        return m + n if abs(left) < 2 else _of_product(math.log2(abs(left)) / 30 * min(right, 10**9))
    if isinstance(operation, ast.Mult):
        return min(m * n, _of_product(max(m, n)))
    if isinstance(operation, ast.Div | ast.FloorDiv):
        return max(m - n, 1.0) * n
    return m + n


def _of_product(digits: float) -> float:
    """Work of multiplying integers of that many digits: Python uses Karatsuba's algorithm."""
    return 4.0 * digits**1.6
