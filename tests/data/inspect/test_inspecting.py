"""A set as a given model would see it, and what the model makes of it."""

import json
import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import pytest
import torch
from torch import Tensor, nn

from calibrant import CalibrationSet, inspect, open_model
from calibrant.data.calibration import KINDS, TokenBatch
from calibrant.data.inspect.inspecting import energy, loss
from calibrant.errors import NumericsError
from calibrant.models import Opened, view
from calibrant.testing import tiny_folder

from tests.data.inspect.sound import tiny


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    path = tmp_path / "problems.jsonl"
    chance = random.Random(0)
    numbers = [(chance.randint(10, 999), chance.randint(10, 999)) for _ in range(80)]
    path.write_text(
        "".join(
            json.dumps({"question": f"{a} and {b} make?", "answer": str(a + b)}) + "\n"
            for a, b in numbers
        )
    )
    return path


def test_text_object_and_opened_model_say_the_same(tmp_path: Path):
    opened = open_model(str(tiny_folder(tmp_path / "tiny")))
    wanted = CalibrationSet("python_docs", samples=2, length=32).tokens(opened.tokenizer)
    by_text = inspect("python_docs", str(tmp_path / "tiny"), samples=2, length=32)
    by_object = inspect(CalibrationSet("python_docs", samples=2, length=32), opened)
    assert by_text == by_object
    assert (by_text.fingerprint, by_text.tokens, by_text.tokenizer) == (
        wanted.fingerprint,
        64,
        str(tmp_path / "tiny"),
    )
    assert by_text.model is not None
    assert (by_text.model["name"], by_text.model["dtype"]) == (
        str(tmp_path / "tiny"),
        str(opened.dtype).removeprefix("torch."),
    )
    assert json.loads(json.dumps(by_text.to_json())) == by_text.to_json()


def test_a_file_of_token_ids_is_compared_with_nothing_of_its_own(tmp_path: Path):
    path = tmp_path / "ids.jsonl"
    path.write_text("".join(json.dumps({"input_ids": [5, 6, 7 + i]}) + "\n" for i in range(20)))
    inspection = inspect(str(path), str(tiny_folder(tmp_path / "tiny")), samples=4, length=8)
    assert (inspection.tokens, inspection.overlap_checks) == (12, ())


@torch.no_grad()
def one_by_one(opened: Opened, batch: TokenBatch) -> tuple[float, int]:
    """The loss, sequence by sequence, without padding or batches."""
    nats: list[float] = []
    for i in range(len(batch.ids)):
        ids = batch.ids[i][batch.mask[i]]
        pad = (
            torch.zeros_like(ids, dtype=torch.bool)
            if batch.pads is None
            else batch.pads[i][batch.mask[i]]
        )
        shares = opened.model(input_ids=ids[None]).logits[0].double().log_softmax(-1)
        nats += [-float(shares[at - 1, ids[at]]) for at in range(1, len(ids)) if not pad[at]]
    return sum(nats) / len(nats), len(nats)


@pytest.mark.parametrize(
    "expr",
    ["{}:icl", "{}:qa@many(bos='document')", "{}:question@legacy", "{}:qa@many(isolate=true)"],
)
def test_the_loss_is_that_of_each_sequence_on_its_own(problems: Path, expr: str):
    opened = tiny()
    batch = CalibrationSet(expr.format(problems), samples=5, length=48).tokens(opened.tokenizer)
    found = loss(opened, batch)
    value, count = one_by_one(opened, batch)
    assert (found["tokens"], found["unit"]) == (count, "nats/token")
    assert found["value"] == pytest.approx(value, rel=1e-5)


def test_a_loss_needs_two_tokens_and_finite_outputs(problems: Path):
    opened = tiny()
    single = CalibrationSet("full_stops", samples=2, length=1).tokens(opened.tokenizer)
    assert loss(opened, single) == {"value": None, "tokens": 0, "unit": "nats/token"}
    opened.model.get_output_embeddings().weight.data.fill_(math.nan)
    batch = CalibrationSet(str(problems), samples=1, length=32).tokens(opened.tokenizer)
    with pytest.raises(NumericsError) as caught:
        loss(opened, batch)
    assert caught.value.subject == "llama"


@contextmanager
def hooked(model: nn.Module, each: Callable[[str, Tensor], None]) -> Iterator[None]:
    """While it lasts, `each` is told what every linear layer of a block is given."""
    handles = [
        module.register_forward_pre_hook(lambda _, args, name=name: each(name, args[0]))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".layers." in name
    ]
    yield
    for handle in handles:
        handle.remove()


@torch.no_grad()
def by_hooks(opened: Opened, batch: TokenBatch, wanted: Tensor) -> dict[str, float]:
    """The share of Σ w·x² that the tokens in `wanted` have in each layer, by plain hooks on one
    sequence at a time.
    """
    whole: dict[str, float] = {}
    own: dict[str, float] = {}
    for i in range(len(batch.ids)):
        real = batch.mask[i]
        weigh, chosen = batch.weights[i][real].double(), wanted[i][real]

        def told(name: str, x: Tensor, weigh: Tensor = weigh, chosen: Tensor = chosen) -> None:
            squares = x[0].double().square().sum(-1) * weigh
            whole[name] = whole.get(name, 0.0) + float(squares.sum())
            own[name] = own.get(name, 0.0) + float(squares[chosen].sum())

        with hooked(opened.model, told):
            opened.model(input_ids=batch.ids[i][real][None])
    return {name: own[name] / total for name, total in whole.items()}


@pytest.mark.parametrize(
    "expr",
    [
        "{0}:chat@many(bos='window')",
        "{0}:qa@one(bos='window')",
        "0.7*{0}:qa@one(bos='document') + 0.3*full_stops",
        "{0}:question@legacy",
    ],
)
def test_each_kind_has_the_share_that_hooks_find(problems: Path, expr: str):
    opened = tiny()
    data = CalibrationSet(expr.format(problems), samples=6, length=48)
    batch, kinds = data.tokens(opened.tokenizer), data.kinds(opened.tokenizer).long()
    found = energy(view(opened.model), batch, kinds)
    pads = torch.zeros_like(batch.mask) if batch.pads is None else batch.pads
    assert found["matrices"] == 21
    assert found["tokens"] == int(batch.mask.sum())
    present = {KINDS[i] for i in kinds[batch.mask & ~pads].unique().tolist()} - {"content"}
    assert set(found["kinds"]) == present | ({"pad"} if bool(pads.any()) else set())
    assert found["kinds"]
    for name, of in found["kinds"].items():
        wanted = pads if name == "pad" else batch.mask & ~pads & (kinds == KINDS.index(name))
        shares = by_hooks(opened, batch, wanted)
        assert of["tokens"] == pytest.approx(int(wanted.sum()) / int(batch.mask.sum()))
        assert of["median"] == pytest.approx(median(shares.values()), rel=1e-4)
        assert of["most"] == pytest.approx(max(shares.values()), rel=1e-4)
        assert shares[of["where"]] == pytest.approx(of["most"], rel=1e-4)
        assert set(of["matrices"]) == {
            name.partition(".layers.")[2].partition(".")[2] for name in shares
        }
