"""What is written as JSON is JSON, which has no NaN and no infinity."""

import json
import math
from pathlib import Path

import pytest

from calibrant.cli import _frame


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_the_command_line_prints_json(capsys: pytest.CaptureFixture[str], number: float) -> None:
    def refused(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    _frame.show({"path": Path("here"), "scores": [{"value": number}, 0.5]}, True, lambda result: [])
    written = json.loads(capsys.readouterr().out, parse_constant=refused)
    assert written == {"path": "here", "scores": [{"value": {"float": repr(number)}}, 0.5]}
