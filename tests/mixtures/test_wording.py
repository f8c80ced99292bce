"""What people read who ask for a mixture that can't be had: what was given, what is allowed, what to do."""

from typing import Any

import pytest

from calibrant.errors import InputError
from calibrant.mixtures import aim_of, mix, stand_in_of


@pytest.mark.parametrize(
    ("sources", "asked", "sentence"),
    [
        ("python_docs", {}, "a mixture needs two sources or more, and was given 1 (python_docs)"),
        ("python_docs python_docs:text", {}, "the source 'python_docs' is given twice"),
        ("c4 mix(a=c4,b=pile,weight=0.5)", {}, "is a mix already and can't be a source; give each of its parts as a source"),
        ("c4 pile", {"objective": "target=mix(a=c4, b=pile, weight=0.5)"}, "is a mix; give one source or one file to be good at"),
        ("c4 pile", {"objective": "best"}, "objective='best' is not known; write mean, worst, or target=EXPR"),
        ("c4 pile", {"objective": "worst", "alone": True}, "alone=True is for a target; with the objective worst the sources judge, leave it out"),
        ("c4 pile", {"method": "wander"}, "did you mean 'wanda'"),
        ("c4 pilee", {}, "there is no source called 'pilee', did you mean 'pile'?"),
        ("c4 pile", {"sparsity": "60"}, "60.0 is no sparsity, did you mean 0.6?"),
        ("c4 pile", {"target": "w4g64", "sparsity": 0.5}, "target=w4g64 and sparsity=0.5 are two words for one thing; give one of them"),
        ("c4 pile", {"target": "w4g64", "imatrix": "mixed.txt"}, "is no name for an imatrix; let it end with .gguf"),
    ],
)
def test_what_cannot_be_mixed(sources: str, asked: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        mix("there is no such model", sources.split(" "), **asked)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("method", "target", "sentence"),
    [
        ("rtn", "w4g64", "rtn looks at no data, so every text gives the same weights; choose gptq, rsq, awq or rtn(scales=importance)"),
        ("magnitude", "0.5", "magnitude looks at no data, so every text gives the same weights; choose wanda or sparsegpt"),
        ("ggml", "q8_0", "ggml rounds to q8_0 without regard to data, so any text will do: there is nothing to choose"),
        ("gptq", "0.5", "gptq can't be asked for 0.5: it accepts a grid of 2 to 8 bits"),
        (None, "blocks 0.25", "blocks 0.25 is no target that data is chosen for; ask for a sparsity"),
        ("short_gpt", "0.25", "what short_gpt does with blocks 0.25 can't be predicted from statistics of texts; ask for a sparsity"),
        ("dsnot(start=magnitude)", "0.6", "can't be predicted from statistics of texts; choose wanda or sparsegpt"),
    ],
)
def test_what_no_data_can_be_chosen_for(method: str | None, target: str, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        stand_in_of(*aim_of(method, target))
    assert sentence in str(caught.value)
