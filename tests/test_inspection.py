"""A set as a given model would see it."""

from pathlib import Path

import pytest

from calibrant import CalibrationSet, inspect, open_model
from calibrant.errors import ModelError
from calibrant.testing import tiny_folder


def test_text_object_and_opened_model_say_the_same(tmp_path: Path):
    opened = open_model(str(tiny_folder(tmp_path / "tiny")))
    wanted = CalibrationSet("python_docs", samples=2, length=32).tokens(opened.tokenizer)
    by_text = inspect("python_docs", str(tmp_path / "tiny"), samples=2, length=32)
    by_object = inspect(CalibrationSet("python_docs", samples=2, length=32), opened)
    assert by_text == by_object
    assert (by_text.fingerprint, by_text.tokens) == (wanted.fingerprint, 64)


def test_a_model_that_is_not_there():
    with pytest.raises(ModelError, match=r"'\./nowhere'"):
        inspect("python_docs", "./nowhere")
