"""Equations of word problems, worked out step by step: numbers, + - * / and brackets, and
nothing else. Nothing is evaluated as code.
"""

import re
from decimal import Decimal
from fractions import Fraction
from itertools import chain
from math import isclose, isfinite
from operator import add, mul, sub, truediv
from typing import Any, Final

from calibrant.data._base import Row, SourceRows
from calibrant.data._limits import LONGEST_EQUATION
from calibrant.errors import DataError

_LEFT_SIDE: Final = re.compile(r"\s*[xX]\s*=")
_OPERAND: Final = re.compile(r"\s*(?:(\()|(-?(?:\d+\.?\d*|\.\d+)))", re.ASCII)
_OPERATOR: Final = re.compile(r"\s*([-+*/)])")
# How tightly a sign binds. At a closing bracket, and at the end of the text, everything is done
# back to the open bracket, which binds least.
_BINDING: Final = {"(": 0, ")": 1, "+": 1, "-": 1, "*": 2, "/": 2}
_OPERATIONS: Final = {"+": add, "-": sub, "*": mul, "/": truediv}

Step = tuple[Fraction, str, Fraction, Fraction]
"""One operation: left, sign, right and what it gives."""


def problem(question: str, answer: Any, equation: str) -> Row:
    """Return a word problem. Its rationale is the equation worked out, one operation a line; it
    has none if that doesn't come to the answer.
    """
    number = written(answer)
    lines = worked(equation, number)
    return Row(
        question=question.strip(),
        answer=number,
        rationale="\n".join(lines) or None,
        steps=len(lines),
    )


def unexplained(content: SourceRows) -> str:
    """Return the note that counts the problems whose equation is no way to their answer."""
    rows = list(chain.from_iterable(content.rows.values()))
    without = sum(row.rationale is None for row in rows)
    if not without:
        return ""
    reason = "since their equation doesn't come to the answer"
    return f"{without:,} of {len(rows):,} problems without a rationale, {reason}"


def written(number: Any) -> str:
    """Return a number, as such or as text, without a needless `.0`, thousands commas or an
    exponent. `DataError` for anything else.
    """
    if isinstance(number, Fraction):
        if number.denominator == 1:
            return str(number.numerator)
        return format(Decimal(repr(float(number))), "f")
    try:
        value = float(str(number).replace(",", ""))
    except ValueError:
        value = float("nan")
    if not isfinite(value):
        raise DataError(
            f"the answer {number!r} is no number; is this another data set?", subject=str(number)
        )
    return written(Fraction(value))


def worked(equation: str, answer: str) -> tuple[str, ...]:
    """Return the operations of an equation in the order in which they are done, such as `22 - 14 =
    8` and `8 / 4 = 2`.

    `X=(…)` or the right side alone. Nothing if it isn't of that kind, has no operation, or doesn't
    come to the answer; the last result is written as the answer is, since both stand in the same
    text.
    """
    # In fractions, so that 1/3 of 3 is 1 and no step shows what rounding made of it.
    steps = solve(_LEFT_SIDE.sub("", equation, count=1))
    if not steps or not isclose(steps[-1][3], float(answer), rel_tol=1e-9, abs_tol=1e-9):
        return ()
    lines: list[str] = []
    for number, (left, sign, right, result) in enumerate(steps, 1):
        outcome = answer if number == len(steps) else written(result)
        lines.append(f"{written(left)} {sign} {_bracketed(right)} = {outcome}")
    return tuple(lines)


def solve(equation: str) -> list[Step] | None:
    """Return the operations of an expression of numbers, done exactly; none if it holds anything
    else, is broken off, or divides by zero.
    """
    # Dijkstra's shunting yard: numbers on one stack, signs and open brackets that wait on another.
    values: list[Fraction] = []
    operators: list[str] = []
    steps: list[Step] = []
    text = equation.strip()
    if len(text) > LONGEST_EQUATION:
        return None
    place = 0
    wants_operand = True
    while place < len(text):
        pattern = _OPERAND if wants_operand else _OPERATOR
        match = pattern.match(text, place)
        if not match:
            return None
        place = match.end()
        sign = match[1]
        if not sign:
            values.append(Fraction(match[2]))
            wants_operand = False
        elif sign == "(":
            operators.append(sign)
        elif not _do_waiting(values, operators, steps, _BINDING[sign]):
            return None
        elif sign == ")":
            if not operators:
                return None
            operators.pop()  # its open bracket: nothing else is left waiting
        else:
            operators.append(sign)
            wants_operand = True
    if wants_operand:
        return None
    divisible = _do_waiting(values, operators, steps, _BINDING[")"])
    # What still waits is a bracket that is never closed.
    if not divisible or operators:
        return None
    return steps


def _do_waiting(
    values: list[Fraction], operators: list[str], steps: list[Step], binding: int
) -> bool:
    """Do the waiting operations that bind at least as tightly, back to an open bracket; false if
    that would divide by zero.
    """
    while operators and _BINDING[operators[-1]] >= binding:
        sign = operators.pop()
        right = values.pop()
        left = values.pop()
        if sign == "/" and not right:
            return False
        result = _OPERATIONS[sign](left, right)
        values.append(result)
        steps.append((left, sign, right, result))
    return True


def _bracketed(number: Fraction) -> str:
    if number < 0:
        return f"({written(number)})"
    return written(number)
