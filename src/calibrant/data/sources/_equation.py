"""Equations of word problems, worked out step by step: numbers, + - * / and brackets, and
nothing else. Nothing is evaluated as code.
"""

import re
from collections.abc import Iterable
from decimal import Decimal
from fractions import Fraction
from math import isclose, isfinite
from typing import Any, Final

from calibrant.data._base import Row
from calibrant.errors import DataError

LONGEST: Final = 200
"""Characters of an equation: a longer one is no word problem's, and its numbers could grow
without bounds.
"""

_BEFORE: Final = re.compile(r"\s*[xX]\s*=")
_OPERAND: Final = re.compile(r"\s*(?:(\()|(-?(?:\d+\.?\d*|\.\d+)))", re.ASCII)
_OPERATOR: Final = re.compile(r"\s*([-+*/)])")
_BINDS: Final = {"(": 0, "+": 1, "-": 1, "*": 2, "/": 2}

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


def unexplained(rows: Iterable[Row]) -> str:
    """Return the note that counts the problems whose equation is no way to their answer."""
    problems = list(rows)
    without = sum(row.rationale is None for row in problems)
    return (
        f"{without:,} of {len(problems):,} problems without a rationale, since their equation doesn't come to the answer"
        * bool(without)
    )


def written(number: Any) -> str:
    """Return a number, as such or as text, without a needless `.0`, thousands commas or an
    exponent. `DataError` for anything else.
    """
    if isinstance(number, Fraction):
        return (
            str(number.numerator)
            if number.denominator == 1
            else format(Decimal(repr(float(number))), "f")
        )
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
    steps = solve(_BEFORE.sub("", equation, count=1))
    if not steps or not isclose(steps[-1][3], float(answer), rel_tol=1e-9, abs_tol=1e-9):
        return ()
    lines = [
        f"{written(left)} {sign} {_bracketed(right)} = {written(result)}"
        for left, sign, right, result in steps
    ]
    return (*lines[:-1], f"{lines[-1].rpartition(' = ')[0]} = {answer}")


def solve(equation: str) -> list[Step] | None:
    """Return the operations of an expression of numbers, done exactly; none if it holds anything
    else, is broken off, or divides by zero.
    """
    values: list[Fraction] = []
    waiting: list[str] = []
    steps: list[Step] = []
    text, at, wants_operand = equation.strip(), 0, True
    while at < len(text) <= LONGEST:
        match = (_OPERAND if wants_operand else _OPERATOR).match(text, at)
        if not match:
            return None
        at, sign = match.end(), match[1]
        if not sign:
            values.append(Fraction(match[2]))
            wants_operand = False
        elif sign == "(":
            waiting.append(sign)
        elif not _reduced(values, waiting, steps, binding=1 if sign == ")" else _BINDS[sign]):
            return None
        elif sign != ")":
            waiting.append(sign)
            wants_operand = True
        elif not waiting or waiting.pop() != "(":
            return None
    whole = not wants_operand and at == len(text) and _reduced(values, waiting, steps, binding=1)
    return steps if whole and not waiting else None


def _reduced(values: list[Fraction], waiting: list[str], steps: list[Step], binding: int) -> bool:
    """Do the waiting operations that bind at least as tightly, back to an open bracket; false if
    that would divide by zero.
    """
    while waiting and _BINDS[waiting[-1]] >= binding:
        sign, right, left = waiting.pop(), values.pop(), values.pop()
        if sign == "/" and not right:
            return False
        values.append(
            {"+": left + right, "-": left - right, "*": left * right}[sign]
            if sign != "/"
            else left / right
        )
        steps.append((left, sign, right, values[-1]))
    return True


def _bracketed(number: Fraction) -> str:
    return f"({written(number)})" if number < 0 else written(number)
