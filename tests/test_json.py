"""What is written as JSON is JSON, which has no NaN and no infinity."""

import ast
import json
import math
from pathlib import Path

import pytest

import calibrant
from calibrant.cli import _frame

ROOT = Path(calibrant.__file__).parent


def writes_json(node: ast.AST) -> bool:
    """Whether a node is a call of `dump` or `dumps`, however the library was imported."""
    if not isinstance(node, ast.Call):
        return False
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    return name in ("dump", "dumps")


def refuses(call: ast.Call) -> bool:
    """Whether it refuses what is no JSON."""
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    allowed = given.get("allow_nan")
    return isinstance(allowed, ast.Constant) and allowed.value is False


def test_json_is_written_without_nan() -> None:
    lenient: list[str] = []
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and writes_json(node) and not refuses(node):
                lenient.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert lenient == [], "give allow_nan=False, or use durable.text_of_json"


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_the_command_line_prints_json(capsys: pytest.CaptureFixture[str], number: float) -> None:
    def refused(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    _frame.show({"path": Path("here"), "scores": [{"value": number}, 0.5]}, True, lambda result: [])
    written = json.loads(capsys.readouterr().out, parse_constant=refused)
    assert written == {"path": "here", "scores": [{"value": {"float": repr(number)}}, 0.5]}
