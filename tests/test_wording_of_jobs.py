"""What is said to somebody who asks for what can't be done: the telling part of each sentence,
and nowhere else.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

from calibrant.activations import Seen
from calibrant.compress import Recipe, prune, quantize
from calibrant.edits import read_edit
from calibrant.edits.file import from_bytes
from calibrant.edits.kinds import StoredEdit
from calibrant.errors import InputError
from calibrant.evaluators import evaluate
from calibrant.evaluators.lape import Lape
from calibrant.methods import Compressed, MatrixMethod
from calibrant.models import open_model, view
from calibrant.spec.grammar import read_set
from calibrant.system.launch import number
from calibrant.targets import Target
from calibrant.testing import tiny_folder, tiny_model, tiny_tokenizer

MODEL = "no/such/model"


class Undecorated(MatrixMethod):
    """A method without `@dataclass(frozen=True, repr=False)` above it."""

    def compress(self, weight: torch.Tensor, seen: Seen, target: Target) -> Compressed:
        raise ValueError("no number fits")


@dataclass(frozen=True, repr=False)
class Raising(Undecorated):
    """A method with a defect."""


def lape_of_one() -> Lape:
    return Lape(
        "m",
        ("a",),
        (9,),
        (2,),
        probability=torch.zeros(1, 2, dtype=torch.float64),
        lowest=0.3,
        quantile=0.5,
    )


def measured_after_a_change() -> object:
    model = tiny_model("llama")
    prune(model, tiny_tokenizer(), method="magnitude")
    torch.nn.init.zeros_(model.lm_head.weight)
    return evaluate(model, tiny_tokenizer(), tasks="loss(source=python_docs)", store="results")


def pruned_on_disk() -> object:
    with TemporaryDirectory() as parent:
        folder = tiny_folder(Path(parent) / "model")
        return prune(open_model(str(folder), on_disk=True), method="magnitude")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (lambda: prune(MODEL, data="c4", method="wnda"), "'wnda', perhaps you mean 'wanda'"),
        (
            lambda: prune(MODEL, data="c4", propagate="sideways"),
            "'sideways' is not known; choose one of arrival, reference, dense",
        ),
        (lambda: prune(MODEL, data="c4", memory=-1.0), "memory=-1 is no room to work in"),
        (
            lambda: prune(MODEL, data="c4", method="rtn", target="w4g64"),
            "rtn is no method for calibrant prune",
        ),
        (lambda: prune(MODEL, data="c4", method="wanda", target="w4g64"), "use calibrant quantize"),
        (lambda: quantize(MODEL, target="0.5"), "use calibrant prune"),
        (
            lambda: prune(MODEL, method=Undecorated()),
            "Undecorated is no frozen dataclass; write @dataclass(frozen=True, repr=False) above",
        ),
        (measured_after_a_change, "isn't as it was loaded or compressed any more"),
        (
            pruned_on_disk,
            "are on disk, and what becomes of them has to be kept there too; give out",
        ),
        (
            lambda: quantize(MODEL, method="gptq", target="w4"),
            "gptq looks at activations and needs calibration data; give --data",
        ),
        (
            lambda: Recipe.parse("wanda", "w4g64"),
            "wanda can't be asked for w4g64: it accepts a sparsity",
        ),
        (lambda: read_set("c4:text:text"), "'c4:text:text' is no calibration set"),
        (lambda: read_set("c4("), "'c4(': a bracket isn't closed"),
        (lambda: read_set("0.5*c4 + pile"), "some parts have a weight and some have none"),
        (lambda: read_set("a.jsonl(path=b)"), "'a.jsonl': the path stands before the brackets"),
        (lambda: from_bytes(b"PK"), "the edits that are kept of a run can't be read"),
        (
            lambda: read_edit(StoredEdit("unheard_of", {}), view(tiny_model("llama"))),
            "install the package of the method that made it",
        ),
        (lambda: lape_of_one().neurons("d"), "nothing was read in 'd'; the languages are a"),
        (
            lambda: number("WORLD_SIZE", 1, 8),
            "WORLD_SIZE is 'y', and must be a whole number from 1 to 8; torchrun sets it",
        ),
    ],
)
def test_a_refusal_says_what_was_given_and_what_to_do(
    asked: Callable[[], object], said: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WORLD_SIZE", "y")
    with pytest.raises(InputError) as caught:
        asked()
    assert said in str(caught.value)


def test_a_defect_of_a_method_is_raised_as_it_is_with_a_note_of_the_method_and_the_matrix():
    with pytest.raises(ValueError, match="no number fits") as caught:
        prune(tiny_model("llama"), tiny_tokenizer(), method=Raising())
    assert caught.value.__notes__ == ["Raising failed at model.layers.0.self_attn.q_proj"]
