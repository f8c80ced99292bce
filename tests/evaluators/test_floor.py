"""The noise floor of KL against two computations of the same numbers, by hand; where there is no
second one, nothing is claimed.
"""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from calibrant.evaluators import Subject, evaluate
from calibrant.evaluators.agreement import Agreement
from calibrant.models import Opened, open_model
from calibrant.testing import tiny_folder

TASK = Agreement(source="python_docs", tokens=96, length=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("model") / "llama")


def by_hand(exact: list[np.ndarray], run: list[np.ndarray]) -> float:
    """The mean of KL(exact ‖ run) over all rows of logits, in float64."""
    nats = []
    for old, new in zip(exact, run, strict=True):
        p, q = (
            np.exp(one - one.max(-1, keepdims=True))
            for one in (old.astype(np.float64), new.astype(np.float64))
        )
        p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
        nats.append((p * np.log(p / q)).sum(-1))
    return float(np.concatenate(nats).mean())


def windows_of(opened: Opened) -> list[list[int]]:
    """The ids of what is measured; every token but the first of a window is scored."""
    windows = TASK.windows(opened.tokenizer)
    assert {w.unscored for w in windows} == {1}
    return [w.ids for w in windows]


def logits(model: torch.nn.Module, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, :-1].double().numpy()


@pytest.mark.parametrize(
    ("dtype", "wider", "low", "high"),
    [
        ("bfloat16", "float32", 1e-6, 1e-2),
        ("float16", "float32", 1e-8, 1e-4),
        ("float32", "float64", 1e-17, 1e-10),
    ],
)
def test_in_torch_it_is_the_dense_model_in_a_type_twice_as_wide(
    folder: Path, dtype: str, wider: str, low: float, high: float
) -> None:
    opened, dense = (open_model(str(folder), dtype, "cpu") for _ in range(2))
    measured = TASK.measure(Subject(opened.model, opened.tokenizer, dense.model))
    facts = measured.score.facts
    exact = copy.deepcopy(opened.model).to(getattr(torch, wider))
    known = by_hand(
        *([logits(model, ids) for ids in windows_of(opened)] for model in (exact, opened.model))
    )
    assert facts["floor"] == pytest.approx(known, rel=0.05)
    assert low < facts["floor"] < high
    assert facts["floor_tokens"] == facts["tokens"]
    assert dtype in facts["floor_between"]
    assert wider in facts["floor_between"]
    assert all("floor" not in score.facts for score in measured.beside)
    assert measured.score.value == 0


def test_where_there_is_no_second_computation_nothing_is_claimed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = open_model(str(folder), "float64", "cpu")
    assert "floor" not in TASK.measure(Subject(wide.model, wide.tokenizer, wide.model)).score.facts
    opened = open_model(str(folder), "bfloat16", "cpu")
    with monkeypatch.context() as patched:
        patched.setattr("calibrant.evaluators._dense.room", lambda device, added=0: 1000)
        dense = open_model(str(folder), "bfloat16", "cpu")
        assert (
            "floor"
            not in TASK.measure(Subject(opened.model, opened.tokenizer, dense.model)).score.facts
        )
    stubborn = open_model(str(folder), "bfloat16", "cpu")

    def insists(module: torch.nn.Module, given: object) -> None:
        if next(module.parameters()).dtype != torch.bfloat16:
            raise RuntimeError("expected scalar type BFloat16 but found Float")

    stubborn.model.register_forward_pre_hook(insists)
    assert (
        "floor"
        not in TASK.measure(Subject(opened.model, opened.tokenizer, stubborn.model)).score.facts
    )


def test_in_llama_cpp_it_is_the_files_own_numbers_in_torch(
    bare: dict[str, Path], folder: Path
) -> None:
    pytest.importorskip("llama_cpp_py_sync", reason="llama-cpp-py-sync isn't installed")
    from calibrant.llama_cpp import LlamaModel

    floors = dict[str, float]()
    for kind, path in bare.items():
        measured = evaluate(str(path), tasks=TASK, reference=str(folder), engine="llama_cpp")[0]
        exact = open_model(str(path), "float32", "cpu")
        with LlamaModel(path, 32) as theirs:
            known = by_hand(
                [logits(exact.model, ids) for ids in windows_of(exact)],
                [theirs.logits(ids)[:-1].astype(np.float64) for ids in windows_of(exact)],
            )
        floors[kind] = measured.score.facts["floor"]
        assert floors[kind] == pytest.approx(known, rel=0.05)
        assert measured.score.facts["floor_between"] == "llama.cpp and torch in float32"
    assert floors["F32"] < 1e-5
    assert (
        min(floors["Q8_0"], floors["Q4_0"]) > 3 * floors["F32"]
    )  # activations are rounded to 8 bits there
