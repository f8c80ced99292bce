"""The sentences that a user of exports most likely meets."""

from pathlib import Path
from typing import Any

import pytest

from calibrant.compress import export, prune, quantize
from calibrant.errors import InputError
from calibrant.testing import tiny_folder

from tests.models.refused import refused


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("wording") / "model")


@pytest.mark.parametrize(
    ("target", "exported", "sentence"),
    [
        ("w4g16", "gguff", "there is no export called 'gguff', did you mean 'gguf'? (known: compressed_tensors, gguf, hf, imatrix, sparse)"),
        ("w4g16", "gguf(unlike=x)", "gguf has no parameter 'unlike', did you mean 'like'?; it takes like, plain"),
        ("w4g16", "gguf(plain=q4)", "plain='q4' is no type of numbers for GGUF; choose one of own, f32, f16, bf16"),
        ("w4g16", "gguf", "wasn't opened from GGUF, and its tokenizer can't be written as llama.cpp wants it; name a GGUF file of the same model"),
        ("w4g16", "gguf(like='nowhere.gguf')", "'nowhere.gguf' is no GGUF file; name one of the same model"),
        ("w4g16", "imatrix", "imatrix holds the sizes of the inputs that a method looked at, and rtn looks at none; leave --export imatrix out"),
        (
            "w4g16a",
            "compressed_tensors",
            "holds symmetric codes, since most readers can't open others, and w4g16a has zero points; quantize to w4g16",
        ),
        ("0.5", "compressed_tensors", "compressed_tensors holds codes of a grid, and 0.5 is none; leave --export compressed_tensors out"),
        ("", "compressed_tensors", "is made of what compressing a model leaves behind, and of a finished model only hf and sparse can be made"),
    ],
)
def test_what_is_said(folder: Path, tmp_path: Path, target: str, exported: str, sentence: str) -> None:
    options: dict[str, Any] = {"dtype": "float32", "export": exported, "out": tmp_path / "out", "kind": InputError}
    if target == "":
        said = refused(export, folder, tmp_path / "out", exported, kind=InputError)
    elif target == "0.5":
        said = refused(prune, str(folder), "python_docs", "magnitude", 0.5, **options)
    else:
        said = refused(quantize, str(folder), target=target, **options)
    assert sentence in str(said)
