"""Small formulas in config files, such as ``int(1024 * 1.5)`` or ``[32 * x for x in range(10, 21)]``.

A formula is read, never run: literals, arithmetic, comparisons, lists, tuples, comprehensions, ``int`` and ``range``
are understood and nothing else. Its length, its steps and the size of every number and list on the way are bounded,
so that a formula of a stranger takes milliseconds or is refused.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["evaluate"]

MAX_LENGTH = 1000
MAX_STEPS = 20_000
MAX_ENTRIES = 10_000
MAX_NUMBER = 2**63

_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_COMPARISONS: dict[type, Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


def evaluate(text: str) -> Any:
    """The value of a formula: a number, a text, True, False, None, or a list or tuple of these.

    Raises:
        ValueError: it holds anything but what the head of this file lists, or grows too large.
    """
    if len(text) > MAX_LENGTH:
        raise ValueError(f"a formula may have {MAX_LENGTH} characters; this one has {len(text)}")
    try:
        value = _Reader().value_of(ast.parse(text.strip(), mode="eval").body, {})
    except (SyntaxError, RecursionError, MemoryError, ArithmeticError, TypeError) as error:
        raise ValueError(f"the formula {_shorten(text)} cannot be read: {error or type(error).__name__}") from None
    except ValueError as error:
        raise ValueError(f"the formula {_shorten(text)} is refused: {error}") from None
    _check_size(value, {})
    return value


def _shorten(text: str) -> str:
    return repr(text if len(text) <= 100 else f"{text[:97]}...")


class _Reader:
    """Walks the tree of a formula, counting its steps."""

    def __init__(self) -> None:
        self._steps = 0

    def value_of(self, node: ast.expr, names: dict[str, Any]) -> Any:
        """The value of a part of the formula, where ``names`` are the variables of comprehensions around it."""
        self._count()
        read = _READERS.get(type(node))
        if read is None:
            raise ValueError(
                f"{_shorten(ast.unparse(node))} is no literal, arithmetic, int, range or comprehension; write the value"
            )
        return read(self, node, names)

    def _count(self, steps: int = 1) -> None:
        self._steps += steps
        if self._steps > MAX_STEPS:
            raise ValueError(f"it takes more than {MAX_STEPS} steps")

    def constant(self, node: ast.Constant, names: dict[str, Any]) -> Any:
        if node.value is not None and not isinstance(node.value, (bool, int, float, str)):
            raise ValueError(f"{node.value!r} is of type {type(node.value).__name__}")
        return node.value if isinstance(node.value, (bool, str, type(None))) else _number(node.value)

    def name(self, node: ast.Name, names: dict[str, Any]) -> Any:
        if node.id not in names:
            raise ValueError(f"{node.id!r} is no variable of a comprehension")
        return names[node.id]

    def listed(self, node: ast.List | ast.Tuple, names: dict[str, Any]) -> Any:
        values = [self.value_of(entry, names) for entry in node.elts]
        return tuple(values) if isinstance(node, ast.Tuple) else values

    def unary(self, node: ast.UnaryOp, names: dict[str, Any]) -> Any:
        value = _number(self.value_of(node.operand, names))
        if isinstance(node.op, ast.USub):
            return -value
        if isinstance(node.op, ast.UAdd):
            return value
        raise ValueError(f"{_shorten(ast.unparse(node))} is no arithmetic")

    def binary(self, node: ast.BinOp, names: dict[str, Any]) -> Any:
        left, right = _number(self.value_of(node.left, names)), _number(self.value_of(node.right, names))
        if isinstance(node.op, ast.Pow):
            return _number(_power(left, right))
        if type(node.op) not in _BINARY:
            raise ValueError(f"{_shorten(ast.unparse(node))} is no arithmetic")
        return _number(_BINARY[type(node.op)](left, right))

    def comparison(self, node: ast.Compare, names: dict[str, Any]) -> bool:
        values = [_number(self.value_of(part, names)) for part in (node.left, *node.comparators)]
        if any(type(op) not in _COMPARISONS for op in node.ops):
            raise ValueError(f"{_shorten(ast.unparse(node))} is no comparison of numbers")
        return all(_COMPARISONS[type(op)](a, b) for op, a, b in zip(node.ops, values, values[1:]))

    def call(self, node: ast.Call, names: dict[str, Any]) -> Any:
        called = node.func.id if isinstance(node.func, ast.Name) else ""
        if called not in ("int", "range") or node.keywords:
            raise ValueError(f"{_shorten(ast.unparse(node))} is a call; only int(...) and range(...) are understood")
        arguments: list[Any] = [_number(self.value_of(argument, names)) for argument in node.args]
        if called == "int":
            return _number(int(*arguments[:1])) if len(arguments) == 1 else _refuse_arguments("int", "one number")
        if not 1 <= len(arguments) <= 3:
            _refuse_arguments("range", "one to three whole numbers")
        numbers = range(*arguments)
        if len(numbers) > MAX_ENTRIES:
            raise ValueError(f"{_shorten(ast.unparse(node))} has {len(numbers)} entries; {MAX_ENTRIES} are allowed")
        self._count(len(numbers))
        return list(numbers)

    def comprehension(self, node: ast.ListComp | ast.GeneratorExp, names: dict[str, Any]) -> list[Any]:
        return list(self._entries(node.elt, node.generators, names))

    def _entries(self, entry: ast.expr, generators: list[ast.comprehension], names: dict[str, Any]) -> Iterator[Any]:
        if not generators:
            yield self.value_of(entry, names)
            return
        first, *others = generators
        if not isinstance(first.target, ast.Name) or first.is_async:
            raise ValueError("a comprehension may have plain variables only")
        values = self.value_of(first.iter, names)
        if not isinstance(values, (list, tuple)):
            raise ValueError(f"{_shorten(ast.unparse(first.iter))} is no list")
        for value in values:
            inner = {**names, first.target.id: value}
            if all(self.value_of(condition, inner) for condition in first.ifs):
                yield from self._entries(entry, others, inner)


_READERS: dict[type, Callable[[_Reader, Any, dict[str, Any]], Any]] = {
    ast.Constant: _Reader.constant,
    ast.Name: _Reader.name,
    ast.List: _Reader.listed,
    ast.Tuple: _Reader.listed,
    ast.UnaryOp: _Reader.unary,
    ast.BinOp: _Reader.binary,
    ast.Compare: _Reader.comparison,
    ast.Call: _Reader.call,
    ast.ListComp: _Reader.comprehension,
    ast.GeneratorExp: _Reader.comprehension,
}


def _number(value: Any) -> int | float:
    """The value itself, if it is a number of ordinary size."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"arithmetic needs numbers, not {type(value).__name__}")
    if isinstance(value, int) and abs(value) > MAX_NUMBER:
        raise ValueError("a number grows beyond 2**63")
    return value


def _power(base: int | float, exponent: int | float) -> int | float:
    if isinstance(base, int) and isinstance(exponent, int):
        # Known before it is computed: the result has at most this many bits.
        if exponent > 0 and base.bit_length() * exponent > 2 * MAX_NUMBER.bit_length():
            raise ValueError("a number grows beyond 2**63")
        return base**exponent
    return math.pow(base, exponent)


def _refuse_arguments(called: str, wanted: str) -> Any:
    raise ValueError(f"{called} takes {wanted}")


def _check_size(value: Any, known: dict[int, int]) -> int:
    """The number of entries of lists in lists, however often one of them is held; ``known`` by their identity."""
    if not isinstance(value, (list, tuple)):
        return 1
    if id(value) not in known:
        known[id(value)] = sum(_check_size(entry, known) for entry in value)
        if known[id(value)] > MAX_ENTRIES:
            raise ValueError(f"a formula may give {MAX_ENTRIES} entries; this one gives more")
    return known[id(value)]
