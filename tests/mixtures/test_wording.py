"""Mixtures that can't be had: which error it is, what it is about, and what people read."""

from pathlib import Path
from typing import Any

import pytest

from calibrant.errors import DataError, InputError, OutputError, SpecError, TargetError
from calibrant.lab.mixtures import aim_of, mix, stand_in_of

MIX = "mix(a=c4, b=pile, weight=0.5)"


@pytest.mark.parametrize(
    ("sources", "asked", "error", "subject", "sentence"),
    [
        (
            ["python_docs"],
            {},
            SpecError,
            "python_docs",
            "a mixture needs two sources or more, and was given 1 (python_docs)",
        ),
        (
            ["python_docs", "python_docs:text"],
            {},
            DataError,
            "python_docs",
            "the source 'python_docs' is given twice",
        ),
        (
            ["c4", MIX],
            {},
            SpecError,
            MIX,
            "is a mix already and can't be a source; give each of its parts as a source",
        ),
        (
            ["c4", "pile"],
            {"objective": f"target={MIX}"},
            SpecError,
            MIX,
            "is a mix; give one source or one file to be good at",
        ),
        (
            ["c4", "pile"],
            {"objective": "best"},
            SpecError,
            "best",
            "objective='best' is not known; write mean, worst, or target=EXPR",
        ),
        (
            ["c4", "pile"],
            {"objective": "worst", "alone": True},
            SpecError,
            "alone",
            "with the objective worst the sources judge, leave it out",
        ),
        (
            ["c4", "pile"],
            {"target": "60"},
            TargetError,
            "60.0",
            "60.0 is no sparsity, perhaps you mean 0.6",
        ),
        (
            ["c4", "pile"],
            {"target": "w4g64", "imatrix": "mixed.txt"},
            OutputError,
            "mixed.txt",
            "is no name for an imatrix; let it end with .gguf",
        ),
    ],
)
def test_what_cannot_be_mixed_is_said_before_a_model_is_opened(
    sources: list[str], asked: dict[str, Any], error: type[InputError], subject: str, sentence: str
) -> None:
    with pytest.raises(error) as caught:
        mix("there is no such model", sources=sources, **asked)
    assert caught.value.subject == subject
    assert sentence in str(caught.value)


def test_a_file_by_two_paths_is_one_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.txt"
    file.write_text("a text\nanother text\n")
    with pytest.raises(DataError, match=r"mine\.txt' is given twice"):
        mix("there is no such model", sources=["mine.txt", "c4", str(file)])


@pytest.mark.parametrize(
    ("method", "target", "error", "subject", "sentence"),
    [
        (
            "rtn",
            "w4g64",
            SpecError,
            "rtn",
            "rtn looks at no data, …; choose gptq, rsq, awq, autoround or rtn(scales=importance)",
        ),
        (
            "ggml",
            "q8_0",
            SpecError,
            "q8_0",
            "ggml rounds to q8_0 without regard to data, so any text will do",
        ),
        (
            "gptq",
            "0.5",
            TargetError,
            "0.5",
            "gptq can't be asked for 0.5: it accepts a grid of 2 to 8 bits",
        ),
        (
            None,
            "blocks 0.25",
            TargetError,
            "blocks 0.25",
            "blocks 0.25 is no target that data is chosen for; ask for a sparsity",
        ),
        (
            "llama_cpp(importance=false, by=kl)",
            "gguf 90MB",
            SpecError,
            "llama_cpp(importance=False, by='kl')",
            "does with gguf 90MB can't be predicted from statistics of texts; choose llama_cpp",
        ),
        (
            "short_gpt",
            "0.25",
            SpecError,
            "short_gpt",
            "can't be predicted from statistics of texts; ask for a sparsity",
        ),
    ],
)
def test_what_no_data_can_be_chosen_for(
    method: str | None, target: str, error: type[InputError], subject: str, sentence: str
) -> None:
    with pytest.raises(error) as caught:
        stand_in_of(*aim_of(method, target))
    assert caught.value.subject == subject
    assert all(piece in str(caught.value) for piece in sentence.split(" …"))
